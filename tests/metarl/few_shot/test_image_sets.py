"""Readers of image sets, on tiny sets made here; hostile and damaged ones too."""

import io
import os
import pickle
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.few_shot import image_sets as images
from metarl.few_shot import omniglot_splits
from metarl.runs import RunError


@pytest.fixture
def small_splits(monkeypatch):
    monkeypatch.setattr(images, "OMNIGLOT_CHARACTERS", 4)
    monkeypatch.setattr(omniglot_splits, "MIXED_SIZES", {"train": 2, "validation": 1, "test": 1})
    monkeypatch.setattr(omniglot_splits, "BACKGROUND_VALIDATION", 1)


def make_omniglot(folder, drawings=20):
    """Two alphabets in each part; a character's number is the column of its stroke."""
    for part, alphabet in (("images_background", "Latin"), ("images_evaluation", "Greek")):
        for character in (1, 2):
            place = folder / part / alphabet / f"character{character:02}"
            place.mkdir(parents=True)
            for drawing in range(drawings):
                image = Image.new("1", (105, 105), 1)
                image.paste(0, (20 * character, 10, 20 * character + 8, 90))
                image.save(place / f"000{character}_{drawing + 1:02}.png")


def pack(folder):
    for part in images.OMNIGLOT_MD5:
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for path in sorted((folder / part).rglob("*.png")):
                archive.write(path, path.relative_to(folder))
                path.unlink()


def test_omniglot_from_archives_and_from_folders(tmp_path, small_splits):
    make_omniglot(tmp_path / "data")
    unpacked = images.omniglot(tmp_path / "data", tmp_path / "cache")
    assert {name: tuple(found.shape) for name, found in unpacked.items()} == {
        "train": (8, 20, 28, 28, 1), "validation": (4, 20, 28, 28, 1), "test": (4, 20, 28, 28, 1)
    }  # fmt: skip
    assert unpacked["train"].dtype == torch.uint8
    assert unpacked["train"][0].float().mean() < 60  # paper is 0, ink 255
    assert unpacked["train"].max() > 200
    [first, *_] = sorted((tmp_path / "data").rglob("*.png"))
    by_hand = Image.open(first).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
    assert any(
        np.array_equal(255 - np.asarray(by_hand), found[0, :, :, 0]) for found in torch.cat([*unpacked.values()])
    )
    pack(tmp_path / "data")
    packed = images.omniglot(tmp_path / "data", tmp_path / "cache")
    assert all(torch.equal(packed[name], unpacked[name]) for name in packed)


def test_a_folder_that_is_not_there_is_not_replaced_by_the_download(tmp_path, small_splits, monkeypatch):
    make_omniglot(tmp_path / "downloaded")
    monkeypatch.setattr(images, "_download_omniglot", lambda cache: tmp_path / "downloaded")
    images.omniglot(None, tmp_path / "cache")
    with pytest.raises(RunError, match=r"Omniglot is not in .*typo; put images_background.zip"):
        images.omniglot(tmp_path / "typo", tmp_path / "cache")


def test_the_second_start_reads_the_prepared_file(tmp_path, small_splits, monkeypatch):
    make_omniglot(tmp_path / "data")
    first = images.omniglot(tmp_path / "data", tmp_path / "cache")
    monkeypatch.setattr(images, "_decode", None)
    second = images.omniglot(tmp_path / "data", tmp_path / "cache")
    assert all(torch.equal(first[name], second[name]) for name in first)
    [drawing, *_] = (tmp_path / "data").rglob("*.png")
    content, status = drawing.read_bytes(), drawing.stat()
    drawing.write_bytes(content + b" ")
    with pytest.raises(TypeError):  # it reads again
        images.omniglot(tmp_path / "data", tmp_path / "cache")
    drawing.write_bytes(content)
    os.utime(drawing, ns=(status.st_atime_ns, status.st_mtime_ns))
    images.omniglot(tmp_path / "data", tmp_path / "cache")
    drawing.rename(drawing.with_name("0000_00.png"))
    with pytest.raises(TypeError):
        images.omniglot(tmp_path / "data", tmp_path / "cache")


def test_missing_and_damaged_omniglot_get_one_line(tmp_path, small_splits, monkeypatch):
    with pytest.raises(RunError, match=r"Omniglot is not in .*; put images_background.zip and images_evaluation.zip"):
        images.omniglot(tmp_path / "none", tmp_path / "cache")
    make_omniglot(tmp_path / "few", drawings=3)
    with pytest.raises(RunError, match="Latin/character01 has 3 drawings"):
        images.omniglot(tmp_path / "few", tmp_path / "cache")
    make_omniglot(tmp_path / "data")
    pack(tmp_path / "data")
    whole = (tmp_path / "data" / "images_background.zip").read_bytes()
    (tmp_path / "data" / "images_background.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"images_background.zip is damaged: .*; download it again"):
        images.omniglot(tmp_path / "data", tmp_path / "cache")
    broken = bytearray(whole)
    broken[60:90] = bytes(30)
    (tmp_path / "data" / "images_background.zip").write_bytes(bytes(broken))
    with pytest.raises(RunError, match="is damaged"):
        images.omniglot(tmp_path / "data", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.pt"))

    def offline(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr(images.urllib.request, "urlopen", offline)
    with pytest.raises(RunError, match=r"cannot download .*: no network; put .* into a folder and name it with --data"):
        images.omniglot(None, tmp_path / "cache")


def test_a_download_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(images.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"something else"))
    with pytest.raises(RunError, match=r"has the checksum .*; allowed: 68d2efa1b9178cc56df9314c21c6e718"):
        images.omniglot(None, tmp_path)
    assert not list(tmp_path.glob("*.zip"))


def mini_arrays(seed):
    return np.random.default_rng(seed).integers(0, 256, (6, 84, 84, 3), np.uint8)


@pytest.mark.parametrize("form", ["class_dict", "labels"])
def test_mini_imagenet_pickles(tmp_path, form):
    for seed, split in enumerate(images.MINI_IMAGENET_SPLITS):
        owners = {"a": [0, 2, 4], "b": [1, 3, 5]}
        content = {"image_data": mini_arrays(seed), "class_dict": owners}
        if form == "labels":
            content = {"data": mini_arrays(seed), "labels": np.array([0, 1] * 3)}
        (tmp_path / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(content, protocol=2))
    found = images.mini_imagenet(tmp_path, tmp_path / "cache")
    assert found["validation"].shape == (2, 3, 84, 84, 3)
    assert (found["validation"][1].numpy() == mini_arrays(1)[[1, 3, 5]]).all()


def test_mini_imagenet_as_the_ravi_split_lists_it(tmp_path):
    (tmp_path / "images").mkdir()
    for split in ("train", "val", "test"):
        lines = ["filename,label"]
        for number in range(4):
            name = f"{split}{number}.png"
            Image.new("RGB", (84, 84), (number, 9, 7)).save(tmp_path / "images" / name)
            lines.append(f"{name},n{number % 2}")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    found = images.mini_imagenet(tmp_path, tmp_path / "cache")["test"]
    assert found[:, :, 0, 0].tolist() == [[[0, 9, 7], [2, 9, 7]], [[1, 9, 7], [3, 9, 7]]]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (b"", r"train.csv lists no images; allowed: columns filename and label, a line per image"),
        (b"a.png,n1\nb.png,n1\n", r"train.csv has no column '(label|filename)'; allowed: columns filename and label"),
        (b"filename,label\n\xff\xfe\x00\x81,n1\n", r"train.csv is damaged: .*codec can't decode"),
        (b"filename,label\nim\x00age.png,n1\n", r"(train.csv|age.png) is damaged: .*(NUL|null)"),
    ],
)
def test_a_damaged_list_gets_one_line(tmp_path, listed, message):
    (tmp_path / "train.csv").write_bytes(listed)
    with pytest.raises(RunError, match=message):
        images.mini_imagenet(tmp_path, tmp_path / "cache")


class Hostile:
    """Runs a command when it is unpickled by a careless reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_hostile_pickle_is_not_executed(tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(pickle.dumps({"image_data": Hostile(trace)}))
    with pytest.raises(RunError, match=r"the pickle asks for \w+.system; allowed: numpy arrays"):
        images.mini_imagenet(tmp_path, tmp_path / "cache")
    time.sleep(0.1)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", pickle.dumps([1, 2]), pickle.dumps({"x": 1})])
def test_damaged_pickles_get_one_line(tmp_path, content):
    (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(content)
    with pytest.raises(RunError, match="is damaged or no MiniImagenet pickle"):
        images.mini_imagenet(tmp_path, tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="lacks the train split"):
        images.mini_imagenet(tmp_path / "empty", tmp_path / "cache")


def test_omniglot_by_its_own_two_parts(tmp_path, small_splits):
    make_omniglot(tmp_path / "data")
    found = images.omniglot(tmp_path / "data", tmp_path / "cache", "background-evaluation")
    shapes = {name: len(of) for name, of in found.items()}
    assert shapes == {"train": 4, "validation": 4, "test": 2}  # test characters are upright alone
    with pytest.raises(ValueError, match="split = 'vinyls'"):
        images.omniglot(tmp_path / "data", tmp_path / "cache", "vinyls")
