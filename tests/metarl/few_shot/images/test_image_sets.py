"""Readers of image sets, on tiny sets made here; hostile and damaged ones too."""

import io
import os
import pickle
import shutil
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.few_shot.images import image_sets as images
from metarl.few_shot.images import omniglot_splits
from metarl.runs import RunError, load_checkpoint, save_checkpoint


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
    monkeypatch.setattr(images, "decoded", None)  # calling it is a TypeError
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
            lines.append(f"{name},{split}{number % 2}")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    found = images.mini_imagenet(tmp_path, tmp_path / "cache")["test"]
    assert found[:, :, 0, 0].tolist() == [[[0, 9, 7], [2, 9, 7]], [[1, 9, 7], [3, 9, 7]]]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (b"", r"train.csv lists no images; allowed: columns filename and label, a line per image"),
        (b"a.png,n1\nb.png,n1\n", r"train.csv has no column '(label|filename)'; allowed: columns filename and label"),
        (b"filename,label\n\xff\xfe\x00\x81,n1\n", r"train.csv is damaged: .*codec can't decode"),
        (b"filename,label\nim\x00age.png,n1\n", r"(train.csv is damaged|age.png cannot be read): .*(NUL|null)"),
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


def test_hidden_files_and_other_endings_of_omniglot_are_counted_aloud(tmp_path, small_splits, capsys):
    make_omniglot(tmp_path / "data")
    expected = images.omniglot(tmp_path / "data", tmp_path / "cache")
    first, *_ = sorted((tmp_path / "data").rglob("*.png"))
    Image.open(first).save(first.with_suffix(".BMP"))
    first.unlink()
    (first.parent / ".hidden.png").touch()
    (first.parent / "notes.txt").touch()
    (tmp_path / "data" / "images_background" / ".git").mkdir()
    found = images.omniglot(tmp_path / "data", tmp_path / "cache")
    assert all(torch.equal(found[name], expected[name]) for name in found)
    said = capsys.readouterr().out
    assert "2 hidden files or folders are not read" in said
    assert "1 .txt" in said


def test_archives_hold_hidden_encrypted_and_broken_members(tmp_path, small_splits, capsys):
    make_omniglot(tmp_path / "data")
    pack(tmp_path / "data")
    path = tmp_path / "data" / "images_background.zip"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/images_background/Latin/._0001_01.png", b"")
        archive.writestr("images_background/readme.txt", b"")
    images.omniglot(tmp_path / "data", tmp_path / "cache")
    assert "1 hidden files" in (said := capsys.readouterr().out)
    assert "1 in other places of the archive" in said
    whole = path.read_bytes()
    encrypted = bytearray(whole)
    place = whole.index(b"PK\x01\x02")  # of the list of members
    encrypted[place + 8] |= 1
    for content, line in ((encrypted, "encrypted"), (whole[:-30], "zip"), (_with_method(whole, place, 99), "method")):
        path.write_bytes(content)
        with pytest.raises(RunError, match=f"images_background.zip is damaged: .*{line}"):
            images.omniglot(tmp_path / "data", tmp_path / "cache")


def _with_method(content, place, method):
    """The archive with a way of compression for its first member that nobody knows."""
    changed = bytearray(content)
    changed[8:10] = changed[place + 10 : place + 12] = method.to_bytes(2, "little")
    return changed


def test_a_member_that_claims_to_be_huge_is_not_read(tmp_path, small_splits):
    make_omniglot(tmp_path / "data")
    pack(tmp_path / "data")
    path = tmp_path / "data" / "images_background.zip"
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02")
    content[place + 24 : place + 28] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"images_background.zip: .*png has 1073741824 bytes"):
        images.omniglot(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("images", "a text"),
        ("images", torch.zeros(4, 20, 28, 28)),
        ("images", torch.zeros(4, 20, 27, 28, dtype=torch.uint8)),
        ("names", "abcd"),
        ("names", [1, 2, 3, 4]),
        ("names", ["a"]),
        ("names", ["a", "b", "c", "d"]),
    ],
)
def test_a_prepared_omniglot_with_something_else_in_it_is_made_again(tmp_path, small_splits, capsys, part, wrong):
    make_omniglot(tmp_path / "data")
    expected = images.omniglot(tmp_path / "data", tmp_path / "cache")
    [path] = (tmp_path / "cache").glob("*.pt")
    save_checkpoint(path, {**load_checkpoint(path), part: wrong})
    capsys.readouterr()
    found = images.omniglot(tmp_path / "data", tmp_path / "cache")
    assert f"{path} is not used: it " in capsys.readouterr().err
    assert all(torch.equal(found[name], expected[name]) for name in found)


def make_photographs(folder):
    """Two classes of each split with four pictures of every ending, of one colour each."""
    endings = ("PNG", "Jpg", "webp", "bmp")
    for split in images.MINI_IMAGENET_SPLITS:
        for number in range(2):
            place = folder / split / f"{split}{number}"
            place.mkdir(parents=True)
            for ending in endings:
                Image.new("RGB", (99, 70), (0, 120 * number, 0)).save(place / f"a.{ending}")
            Image.fromarray(np.full((84, 84), 127 * 257, np.uint16)).save(place / "b.png")


def test_mini_imagenet_from_folders_reads_pictures_of_every_kind(tmp_path, capsys):
    make_photographs(tmp_path / "data")
    (tmp_path / "data" / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "data" / "val" / "val0" / "Thumbs.db").touch()
    found = images.mini_imagenet(tmp_path / "data", tmp_path / "cache")
    assert {split: tuple(of.shape) for split, of in found.items()} == dict.fromkeys(
        ("train", "validation", "test"), (2, 5, 84, 84, 3)
    )
    middles = found["train"][:, :, 42, 42].int()
    assert (middles[:, 4] == 127).all()
    assert (middles[1, :4] - torch.tensor([0, 120, 0])).abs().max() <= 4
    said = capsys.readouterr().out
    assert "1 hidden files" in said
    assert "1 .db" in said
    [path] = (tmp_path / "cache").glob("*.pt")
    save_checkpoint(path, {**load_checkpoint(path), "validation": [1, 2]})
    images.mini_imagenet(tmp_path / "data", tmp_path / "cache")
    assert "is not used: it does not hold uint8 validation images" in capsys.readouterr().err
    shutil.copytree(tmp_path / "data" / "val" / "val0", tmp_path / "data" / "test" / "val0")
    with pytest.raises(RunError, match="class val0 is in val and test; allowed: in one of them"):
        images.mini_imagenet(tmp_path / "data", tmp_path / "cache")
    shutil.rmtree(tmp_path / "data" / "test" / "val0")
    os.mkfifo(tmp_path / "data" / "test" / "test1" / "pipe.jpg")
    with pytest.raises(RunError, match=r"pipe\.jpg is not a regular file"):
        images.mini_imagenet(tmp_path / "data", tmp_path / "cache")
    (tmp_path / "data" / "test" / "test1" / "pipe.jpg").unlink()
    (tmp_path / "data" / "test" / "test1" / "b.png").unlink()
    with pytest.raises(RunError, match=r"classes of test have \[4, 5\] images; .*experiments/images.py"):
        images.mini_imagenet(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize("row", ["a.png", ",n1", "a.png,"])
def test_a_list_with_a_short_line_gets_one_line(tmp_path, row):
    (tmp_path / "train.csv").write_text(f"filename,label\n{row}\n")
    with pytest.raises(RunError, match=r"(train.csv has no label in line 2|images is not a regular|cannot be read)"):
        images.mini_imagenet(tmp_path, tmp_path / "cache")
