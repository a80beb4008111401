"""Folders of class folders: which class is of which split, what is read, and what is refused by name."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.few_shot.images.image_folders import SplitRule, find_classes, own_images
from metarl.few_shot.images.pictures import PictureForm
from metarl.runs import RunError

FORM = PictureForm(6, 8)


def make_class(folder, colour, count=2, size=(8, 6), ending="png"):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", size, (colour, number, 0)).save(folder / f"{number}.{ending}")


@pytest.fixture
def classes(tmp_path):
    """Seven classes, class N of N + 1 pictures."""
    for number in range(7):
        make_class(tmp_path / "data" / f"c{number}", 10 * number, number + 1)
    return tmp_path / "data"


def colours(found):
    """The first two channels of the first pixel of each image, by split and class."""
    return {
        split: {
            name: part[:, 0, 0, :2].tolist()
            for name, part in zip(of.names, of.images.split(list(of.sizes)), strict=True)
        }
        for split, of in found.items()
    }


def test_every_class_keeps_its_own_pictures(classes, tmp_path, capsys):
    found = own_images(classes, tmp_path / "cache", FORM, SplitRule(seed=3, share=0.3))
    assert {split: len(of) for split, of in found.items()} == {"train": 3, "validation": 2, "test": 2}
    everything = {name: of for split in colours(found).values() for name, of in split.items()}
    assert everything == {f"c{n}": [[10 * n, i] for i in range(n + 1)] for n in range(7)}
    assert found["train"].images.shape[1:] == (6, 8, 3)
    printed = capsys.readouterr().out
    assert "classes of 3 train, 2 validation, 2 test, dealt by their names and the seed 3" in printed
    assert "8 x 6 pixels already" in printed
    again = own_images(classes, tmp_path / "cache", FORM, SplitRule(seed=3, share=0.3))
    assert colours(again) == colours(found)
    assert capsys.readouterr().out == printed  # it is said at every start


def test_the_rule_depends_on_names_and_seed_alone():
    names = [f"class {number}" for number in range(50)]
    dealt = SplitRule().split(names)
    assert {split: len(of) for split, of in dealt.items()} == {"train": 30, "validation": 10, "test": 10}
    assert sorted(name for of in dealt.values() for name in of) == sorted(names)
    assert dealt == SplitRule().split(names[::-1])
    assert dealt != SplitRule(seed=1).split(names)
    assert dealt["test"][:3] == ["class 0", "class 10", "class 14"]  # those of every version
    more = SplitRule().split([*names, "another"])
    moved = [name for split in dealt for name in dealt[split] if name not in more[split]]
    assert len(moved) <= 2


@pytest.mark.parametrize(
    ("count", "least", "expected"), [(15, 5, (5, 5, 5)), (17, 5, (7, 5, 5)), (40, 5, (24, 8, 8)), (3, 1, (1, 1, 1))]
)
def test_every_split_has_enough_classes_for_a_task(count, least, expected):
    dealt = SplitRule(least=least).split([str(number) for number in range(count)])
    assert tuple(len(dealt[split]) for split in ("train", "validation", "test")) == expected


def test_too_few_classes_are_refused(classes):
    with pytest.raises(RunError, match=r"data has 7 classes for .* allowed: at least 3 x 3"):
        find_classes(classes, SplitRule(least=3))


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_folders_of_splits_are_taken(tmp_path, validation, capsys):
    for number, split in enumerate(("train", validation, "test")):
        make_class(tmp_path / "data" / split / f"c{number}", number, number + 1)
    (tmp_path / "data" / "extra").mkdir()
    found = own_images(tmp_path / "data", tmp_path / "cache", FORM, SplitRule(least=99))
    assert {split: of.names for split, of in found.items()} == {
        "train": ("c0",),
        "validation": ("c1",),
        "test": ("c2",),
    }
    printed = capsys.readouterr().out
    assert "as its folders say" in printed
    assert "1 folders beside train, validation and test" in printed


def test_folders_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(RunError, match="none is no folder"):
        find_classes(tmp_path / "none", SplitRule())
    for split in ("train", "test"):
        make_class(tmp_path / "data" / split / "c", 1)
    with pytest.raises(RunError, match="has train, test but no validation"):
        find_classes(tmp_path / "data", SplitRule())
    (tmp_path / "data" / "val").mkdir()
    with pytest.raises(RunError, match="no class folders in validation"):
        find_classes(tmp_path / "data", SplitRule())
    make_class(tmp_path / "data" / "val" / "d", 1)
    with pytest.raises(RunError, match="class c is in train and test"):
        find_classes(tmp_path / "data", SplitRule())


def test_mixed_pictures_are_turned_into_one_form_and_the_rest_is_counted_aloud(tmp_path, capsys):
    folder = tmp_path / "data"
    for number in range(3):
        make_class(folder / f"c{number}", 50, 1, (30, 20), "JPG")
    Image.fromarray(np.full((9, 9), 127 * 257, np.uint16)).save(folder / "c0" / "deep.PNG")
    Image.new("1", (64, 48), 1).save(folder / "c0" / "black-and-white.tif")
    (folder / "c0" / ".DS_Store").touch()
    (folder / ".git").mkdir()
    (folder / "c1" / "notes.txt").touch()
    (folder / "readme.md").touch()
    found = own_images(folder, tmp_path / "cache", PictureForm(5, 5, 1), SplitRule())
    images = {}
    for split in found.values():
        images |= dict(zip(split.names, split.images.split(list(split.sizes)), strict=True))
    assert [len(images[f"c{n}"]) for n in range(3)] == [3, 1, 1]
    assert images["c0"][:, 2, 2, 0].tolist()[1:] == [255, 127]  # by name: 0.JPG, black-and-white.tif, deep.PNG
    said = capsys.readouterr().out
    assert "pictures of 9 x 9 to 64 x 48 pixels are resized to 5 x 5 grey" in said
    assert "2 hidden files or folders are not read" in said
    assert "1 .md beside folders, 1 .txt" in said


def test_a_picture_that_cannot_be_read_is_named(classes, tmp_path):
    os.mkfifo(classes / "c1" / "pipe.png")
    with pytest.raises(RunError, match=r"c1/pipe.png is not a regular file"):
        own_images(classes, tmp_path / "cache", FORM, SplitRule())
    assert not (tmp_path / "cache").exists()


def test_another_form_is_prepared_for_itself(classes, tmp_path):
    for form in (FORM, PictureForm(4, 4), PictureForm(4, 4, 1), FORM):
        found = own_images(classes, tmp_path / "cache", form, SplitRule())
        assert found["train"].images.shape[1:] == form.shape
        assert found["train"].images.dtype == torch.uint8
    assert len(list((tmp_path / "cache").glob("*.pt"))) == 3
