"""The cache of prepared images: what was read from files once is kept, for faster starts."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from metarl.runs import RunError, load_checkpoint, save_checkpoint

READERS_VERSION = 2  # goes up when images are read in another way, so that what was prepared before is not used


def default_cache() -> Path:
    """Where prepared image sets are kept: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metarl"


def files_below(folder: Path) -> list[Path]:
    """Return all files in a folder and in those within it, also behind links to folders."""
    found, seen = [], set()
    for inner, folders, names in os.walk(folder.resolve(), followlinks=True):
        if (real := os.path.realpath(inner)) in seen:  # a link to a folder around it, or a second one
            folders.clear()
        seen.add(real)
        found += [Path(inner, name) for name in names]
    return sorted(found)


def prepared(
    cache: Path,
    name: str,
    files: Iterable[Path],
    read: Callable[[], dict[str, Any]],
    check: Callable[[dict[str, Any]], None],
    form: str = "",
) -> dict[str, Any]:
    """Return what `read` returns, kept in a file named by what there is to read: files, their sizes and times.

    A prepared file that is damaged or holds something else is made again, and the user is told.

    Args:
        cache: folder of the prepared file.
        name: of the image set.
        files: that are read.
        read: makes tensors, texts, lists and dicts.
        check: raises RunError for content that `read` does not return.
        form: of the images, where the same files can be read in several.
    """
    listed = [(str(file), *_size_and_time(file)) for file in files]
    key = repr([READERS_VERSION, form, listed]).encode()
    path = cache / f"{name}-{hashlib.sha256(key).hexdigest()[:12]}.pt"
    if path.is_file():
        try:
            content = load_checkpoint(path)
            check(content)
            return content
        except RunError as error:
            print(f"{path} is not used: {error}", file=sys.stderr)
    print(f"preparing {name.replace('_', ' ')} for later starts, in {path}", file=sys.stderr)
    content = read()
    check(content)
    cache.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, content)
    return content


def _size_and_time(file: Path) -> tuple[int, int]:
    """Of a file; of a link that leads nowhere, its own."""
    try:
        status = file.stat()
    except OSError:
        status = file.lstat()
    return status.st_size, status.st_mtime_ns
