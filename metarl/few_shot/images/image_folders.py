"""Pictures of one's own: a folder of class folders, whose classes may have any number of pictures of any size.

With `train/`, `validation/` (or `val/`) and `test/` in the folder, these are the splits. Without them the classes are
split by a rule that depends on their names and a seed: sorted by the digest of both, the first ones are for the test,
the next ones for validation and all others for training. So a class that is added moves few of the others.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.few_shot.images.image_cache import prepared
from metarl.few_shot.images.image_classes import ImageClasses
from metarl.few_shot.images.pictures import PictureForm, Skipped, folders_in, pictures_in, read_picture
from metarl.runs import RunError

SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


@dataclass(frozen=True)
class SplitRule:
    """How classes are split where the folder does not say it.

    Attributes:
        seed: of the rule.
        share: of the classes that are for validation, and as many again for the test.
        least: classes of each split.
    """

    seed: int = 0
    share: float = 0.2
    least: int = 1

    def split(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Return the names of the classes of each split, sorted; ValueError for too few classes."""
        if len(names) < 3 * self.least:
            raise ValueError(
                f"{len(names)} classes for training, validation and test together; "
                f"allowed: at least 3 x {self.least}, for tasks of {self.least} classes"
            )
        held_out = max(self.least, min(round(self.share * len(names)), (len(names) - self.least) // 2))
        dealt = sorted(names, key=lambda name: hashlib.sha256(f"{self.seed}/{name}".encode()).hexdigest())
        parts = {"train": dealt[2 * held_out :], "validation": dealt[held_out : 2 * held_out], "test": dealt[:held_out]}
        return {split: sorted(part) for split, part in parts.items()}


@dataclass(frozen=True)
class ClassFolders:
    """What there is to read in a folder of class folders.

    Attributes:
        pictures: the files of each class of each split.
        notes: what a user should be told, a line each.
        named: whether the folder itself says which class is of which split.
    """

    pictures: dict[str, dict[str, list[Path]]]
    notes: list[str]
    named: bool


def find_classes(folder: Path, rule: SplitRule) -> ClassFolders:
    """Look for class folders and their pictures, without reading these.

    Raises:
        RunError: no folder, or no class folders in it, or too few for the rule, or a split of the three is missing.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder; allowed: a folder of class folders of pictures")
    skipped = Skipped()
    top = {path.name: path for path in folders_in(folder, skipped)}
    found = {s: next((top[n] for n in names if n in top), None) for s, names in SPLIT_FOLDERS.items()}
    splits = {split: path for split, path in found.items() if path is not None}
    if splits:
        if missing := [split for split in SPLIT_FOLDERS if split not in splits]:
            raise RunError(
                f"{folder} has {', '.join(splits)} but no {missing[0]}; allowed: all of {_listed()}, or none"
            )
        if len(top) > len(splits):
            skipped.others["folders beside train, validation and test"] = len(top) - len(splits)
        folders = {s: {path.name: path for path in folders_in(of, skipped)} for s, of in splits.items()}
        _require_disjoint(folder, folders)
    else:
        try:
            parts = rule.split(list(top))
        except ValueError as error:
            raise RunError(f"{folder} has {error}") from error
        folders = {split: {name: top[name] for name in names} for split, names in parts.items()}
    pictures = {s: {name: pictures_in(path, skipped) for name, path in of.items()} for s, of in folders.items()}
    counts = ", ".join(f"{len(of)} {split}" for split, of in pictures.items())
    how = "as its folders say" if splits else f"dealt by their names and the seed {rule.seed}"
    return ClassFolders(pictures, [f"{folder}: classes of {counts}, {how}", *skipped.notes(folder)], bool(splits))


def own_images(folder: Path, cache: Path, form: PictureForm, rule: SplitRule) -> dict[str, ImageClasses]:
    """Read a folder of class folders; what is resized and what is not read is printed.

    Args:
        folder: of class folders, or of `train`, `validation` and `test` with class folders each.
        cache: folder of the prepared file.
        form: of the images that are returned.
        rule: which classes are of which split, where the folder does not say it.

    Returns:
        the classes of each split, with their names.

    Raises:
        RunError: a folder or picture that cannot be used, by name.
    """
    found = find_classes(folder, rule)
    files = [path for of in found.pictures.values() for paths in of.values() for path in paths]

    def read() -> dict[str, Any]:
        images, sizes = np.empty((len(files), *form.shape), np.uint8), set()
        for number, path in enumerate(files):
            picture = read_picture(path)
            sizes.add(picture.size)
            images[number] = form.of(picture)
        return {"images": torch.from_numpy(images), "note": _resized(sizes, form)}

    def check(content: dict[str, Any]) -> None:
        images = content.get("images")
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.shape != (len(files), *form.shape):
            raise RunError(f"it does not hold {len(files)} uint8 images {form.shape}")
        if not isinstance(content.get("note"), str):
            raise RunError("it does not say how pictures were resized")

    content = prepared(cache, "own_images", files, read, check, repr(form))
    for note in [*found.notes, f"{folder}: {content['note']}"]:
        print(note)
    classes, start = {}, 0
    for split, of in found.pictures.items():
        sizes = tuple(len(paths) for paths in of.values())
        part = content["images"][start : start + sum(sizes)]
        classes[split], start = ImageClasses(part, sizes, tuple(of)), start + sum(sizes)
    return classes


def _require_disjoint(folder: Path, folders: dict[str, dict[str, Path]]) -> None:
    """RunError for a class that is in two splits, as its pictures would be trained on and tested."""
    owners: dict[str, str] = {}
    for split, of in folders.items():
        if not of:
            raise RunError(f"{folder} has no class folders in {split}; allowed: one or more")
        for name in of:
            if owners.setdefault(name, split) != split:
                raise RunError(f"{folder}: class {name} is in {owners[name]} and {split}; allowed: in one of them")


def _resized(sizes: set[tuple[int, int]], form: PictureForm) -> str:
    """What was done to pictures of these sizes (W, H), for the user."""
    colour = "grey" if form.channels == 1 else "RGB"
    if sizes <= {(form.width, form.height)}:
        return f"pictures have {form.width} x {form.height} pixels already, read as {colour}"
    low, high = min(sizes, key=lambda size: size[0] * size[1]), max(sizes, key=lambda size: size[0] * size[1])
    return (
        f"pictures of {low[0]} x {low[1]} to {high[0]} x {high[1]} pixels are resized to {form.width} x {form.height} "
        f"{colour}, whatever their aspect ratio"
    )


def _listed() -> str:
    return ", ".join(f"{split}/" for split in SPLIT_FOLDERS)
