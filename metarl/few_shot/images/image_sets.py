"""Image sets for few-shot learning, read without executing anything, as one uint8 tensor per split.

Omniglot: `images_background.zip` and `images_evaluation.zip` in one folder, or the unpacked folders of these names,
or a download. MiniImagenet: a folder `train/CLASS/*.jpg`, `val/...`, `test/...` (or the Ravi split's `train.csv`,
`val.csv`, `test.csv` beside `images/`), or the usual three pickles.
"""

import csv
import hashlib
import pickle
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.few_shot.images.image_cache import files_below, prepared
from metarl.few_shot.images.omniglot_splits import split_characters
from metarl.few_shot.images.pictures import (
    MOST_BYTES,
    PictureForm,
    Skipped,
    decoded,
    folders_in,
    is_picture_name,
    pictures_in,
    read_bytes,
    read_picture,
)
from metarl.few_shot.tasks import with_rotations
from metarl.runs import RunError, write_atomically

OMNIGLOT_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/{name}.zip"
OMNIGLOT_MD5 = {
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
OMNIGLOT_CHARACTERS = 1623
MINI_IMAGENET_SPLITS = {"train": "train", "val": "validation", "test": "test"}
OMNIGLOT_FORM = PictureForm(28, 28, channels=1, inverted=True)
MINI_IMAGENET_FORM = PictureForm(84, 84)


def omniglot(folder: Path | None, cache: Path, split: str = "mixed") -> dict[str, Tensor]:
    """Omniglot's characters, most with their four rotations as classes of their own.

    Args:
        folder: of the archives or of what is in them; None downloads them into the cache.
        cache: folder of the prepared file, which is made at the first call.
        split: which characters are for training, validation and test, see `metarl.few_shot.images.omniglot_splits`.

    Returns:
        per split (classes, 20, 28, 28, 1) uint8; ink is 255, paper 0.

    Raises:
        RunError: a missing or damaged set.
    """
    if folder is not None and not folder.is_dir():
        raise _no_omniglot(folder)
    files = [] if folder is None else files_below(folder)
    read = prepared(
        cache,
        "omniglot_characters",
        files,
        lambda: _read_omniglot(folder or _download_omniglot(cache)),
        _check_omniglot,
    )
    images = read["images"][..., None]
    parts = {part: images[torch.from_numpy(found)] for part, found in split_characters(split, read["names"]).items()}
    upright = ("test",) if split == "background-evaluation" else ()
    return {part: found if part in upright else with_rotations(found) for part, found in parts.items()}


def mini_imagenet(folder: Path | None, cache: Path) -> dict[str, Tensor]:
    """The Ravi split's 64 training, 16 validation and 20 test classes.

    Returns:
        per split (classes, 600, 84, 84, 3) uint8.

    Raises:
        RunError: a missing or damaged set.
    """
    if folder is None or not folder.is_dir():
        where = "has no download" if folder is None else f"is not in {folder}"
        raise RunError(
            f"MiniImagenet {where}; put train/, val/ and test/ with a folder of images per class, or "
            "images/ with train.csv, val.csv and test.csv, or mini-imagenet-cache-{train,val,test}.pkl there, "
            "and name it with --data"
        )
    return prepared(
        cache, "mini_imagenet", files_below(folder), lambda: _read_mini_imagenet(folder), _check_mini_imagenet
    )


def _read_omniglot(folder: Path) -> dict[str, Any]:
    """All characters in the order of alphabets, inverted, as `images` (characters, 20, 28, 28), and their `names`."""
    characters: dict[str, list[np.ndarray]] = {}
    parts: dict[str, str] = {}
    skipped = Skipped()
    for part in OMNIGLOT_MD5:
        for path, content in _omniglot_files(folder, part, skipped):
            _, alphabet, character, _ = path.split("/")
            name = f"{alphabet}/{character}"
            parts[name] = part
            characters.setdefault(name, []).append(OMNIGLOT_FORM.of(decoded(content, path))[:, :, 0])
    if wrong := [name for name, drawings in characters.items() if len(drawings) != 20]:
        raise RunError(f"{folder}: {wrong[0]} has {len(characters[wrong[0]])} drawings; allowed: 20")
    if len(characters) < OMNIGLOT_CHARACTERS:
        raise RunError(f"{folder} holds {len(characters)} characters; allowed: all {OMNIGLOT_CHARACTERS} of Omniglot")
    _tell(skipped, folder)
    names = sorted(characters)
    images = torch.from_numpy(np.stack([characters[name] for name in names]))
    return {"images": images, "names": [f"{parts[name]}/{name}" for name in names]}


def _check_omniglot(content: dict[str, Any]) -> None:
    """RunError unless this is what `_read_omniglot` returns."""
    images, names = content.get("images"), content.get("names")
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.shape[1:] != (20, 28, 28):
        raise RunError("it does not hold uint8 images (character, 20, 28, 28)")
    if not isinstance(names, list) or len(names) != len(images) or not all(isinstance(name, str) for name in names):
        raise RunError(f"it does not hold a list of the {len(images)} characters' names")
    if not all(name.count("/") == 2 for name in names):
        raise RunError("it holds names other than part/alphabet/character")


def _check_mini_imagenet(content: dict[str, Any]) -> None:
    """RunError unless this is what `_read_mini_imagenet` returns."""
    for split in MINI_IMAGENET_SPLITS.values():
        images = content.get(split)
        if (
            not isinstance(images, Tensor)
            or images.dtype != torch.uint8
            or images.shape[2:] != MINI_IMAGENET_FORM.shape
        ):
            raise RunError(f"it does not hold uint8 {split} images (class, image, 84, 84, 3)")


def _tell(skipped: Skipped, folder: Path) -> None:
    for note in skipped.notes(folder):
        print(note)


def _no_omniglot(folder: Path) -> RunError:
    return RunError(f"Omniglot is not in {folder}; put images_background.zip and images_evaluation.zip there")


def _omniglot_files(folder: Path, part: str, skipped: Skipped) -> Iterator[tuple[str, bytes]]:
    """Name (part/alphabet/character/drawing) and content of each picture of a part."""
    archive = folder / f"{part}.zip"
    if archive.is_file():
        yield from _members(archive, skipped)
        return
    if not (folder / part).is_dir():
        raise _no_omniglot(folder)
    for alphabet in folders_in(folder / part, skipped):
        for character in folders_in(alphabet, skipped):
            for path in pictures_in(character, skipped):
                yield path.relative_to(folder).as_posix(), read_bytes(path)


def _members(archive: Path, skipped: Skipped) -> Iterator[tuple[str, bytes]]:
    """Name and content of the pictures in an archive."""
    name = ""
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in sorted(opened.infolist(), key=lambda member: member.filename):
                name = member.filename
                places = name.split("/")
                if any(place.startswith(".") or place == "__MACOSX" for place in places):
                    skipped.hidden += 1
                elif not member.is_dir() and is_picture_name(name) and len(places) == 4:
                    if member.file_size > MOST_BYTES:
                        raise RunError(f"{archive}: {name} has {member.file_size} bytes; allowed: at most {MOST_BYTES}")
                    yield name, opened.read(member)
                elif not member.is_dir():
                    skipped.others["in other places of the archive"] += 1
    except (RunError, MemoryError):
        raise
    except Exception as error:  # zipfile raises errors of many kinds for damaged, encrypted and foreign archives
        raise RunError(f"{archive} is damaged: {name} {error}; download it again") from error


def _download_omniglot(cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    for name, md5 in OMNIGLOT_MD5.items():
        path = cache / f"{name}.zip"
        if path.exists():
            continue
        url = OMNIGLOT_URL.format(name=name)
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                content = response.read()
        except OSError as error:
            raise RunError(
                f"cannot download {url}: {error}; put images_background.zip and images_evaluation.zip into a folder "
                "and name it with --data"
            ) from error
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5:
            raise RunError(f"{url} has the checksum {found}; allowed: {md5}")
        write_atomically(path, content)
    return cache


def _read_mini_imagenet(folder: Path) -> dict[str, Tensor]:
    splits: dict[str, Tensor] = {}
    owners: dict[str, str] = {}
    skipped = Skipped()
    for short, split in MINI_IMAGENET_SPLITS.items():
        found = [p for p in sorted(folder.glob(f"*{short}*.p*kl*")) if p.is_file()]
        if found:
            classes = _read_pickle(found[0])
        elif (folder / f"{short}.csv").is_file():
            classes = _read_listed(folder, f"{short}.csv")
        elif (folder / short).is_dir():
            folders = folders_in(folder / short, skipped)
            classes = {path.name: _read_files(pictures_in(path, skipped)) for path in folders}
        else:
            raise RunError(f"{folder} lacks the {short} split; allowed: {short}/, {short}.csv or a pickle of it")
        for name in classes if not found else ():  # pickles may number the classes of each split from 0
            if owners.setdefault(name, short) != short:
                raise RunError(f"{folder}: class {name} is in {owners[name]} and {short}; allowed: in one of them")
        sizes = {len(images) for images in classes.values()}
        if len(sizes) != 1 or not min(sizes):
            raise RunError(
                f"{folder}: classes of {short} have {sorted(sizes)} images; allowed: one number for all "
                "(experiments/images.py takes classes of unequal size)"
            )
        splits[split] = torch.from_numpy(np.stack(list(classes.values())))
    _tell(skipped, folder)
    return splits


def _read_listed(folder: Path, name: str) -> dict[str, np.ndarray]:
    with open(folder / name, newline="") as file:
        try:
            rows = [(row["label"], folder / "images" / (row["filename"] or "")) for row in csv.DictReader(file)]
        except KeyError as error:
            raise RunError(f"{folder / name} has no column {error}; allowed: columns filename and label") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise RunError(f"{folder / name} is damaged: {error}") from error
    if short := [number for number, (label, _) in enumerate(rows, 2) if not label]:
        raise RunError(f"{folder / name} has no label in line {short[0]}; allowed: columns filename and label")
    if not rows:
        raise RunError(f"{folder / name} lists no images; allowed: columns filename and label, a line per image")
    labels = dict.fromkeys(label for label, _ in rows)
    return {label: _read_files([path for of, path in rows if of == label]) for label in labels}


def _read_files(paths: list[Path]) -> np.ndarray:
    images = [MINI_IMAGENET_FORM.of(read_picture(path)) for path in paths]
    return np.stack(images) if images else np.empty((0, *MINI_IMAGENET_FORM.shape), np.uint8)


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    """A dict of `image_data` (all, 84, 84, 3) and `class_dict`, or of `data` and `labels`."""
    try:
        with open(path, "rb") as file:
            content = _PlainUnpickler(file, encoding="latin1").load()
        images = np.asarray(content["image_data"] if "image_data" in content else content["data"])
        owners: Mapping[Any, Any] = content.get("class_dict") or _owners(content["labels"])
        classes = {str(name): images[np.asarray(index, np.int64)] for name, index in owners.items()}
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"{path} is damaged or no MiniImagenet pickle: {error}") from error
    if images.dtype != np.uint8 or images.shape[1:] != (84, 84, 3):
        raise RunError(f"{path} holds {images.dtype} images {images.shape[1:]}; allowed: uint8 (84, 84, 3)")
    return classes


def _owners(labels: Iterable[Any]) -> dict[Any, np.ndarray]:
    numbered = np.asarray(labels)
    return {label: np.flatnonzero(numbered == label) for label in np.unique(numbered)}


class _PlainUnpickler(pickle.Unpickler):
    """Reads arrays, dicts, lists, texts and numbers; refuses whatever else a pickle may name, so no code runs."""

    _ALLOWED = frozenset(
        [(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")]
        + [(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")]
        + [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few allowed names."""
        if (module, name) not in self._ALLOWED:
            raise RunError(f"the pickle asks for {module}.{name}; allowed: numpy arrays, dicts, lists and texts")
        return super().find_class(module, name)
