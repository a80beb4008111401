"""Where results go, looked at before any work is done."""

from pathlib import Path

from metarl.core.settings import SettingError


def output_file(named: Path | None, usual: Path) -> Path:
    """Where a result goes; SettingError if it cannot go there.

    Args:
        named: by the user, whose regular file may be replaced, except those that a run keeps in its directory.
        usual: where nothing is named, which must be free.
    """
    path = named or usual
    if not path.parent.is_dir() or (path.exists() and not path.is_file()):
        raise SettingError(f"--output = {path}; allowed: a file in a folder that exists")
    if named is not None and path.exists() and (path.resolve().parent / "config.json").exists():
        raise SettingError(f"--output = {path} is a file of a run; allowed: a name that is free there")
    if named is None and path.exists():
        raise SettingError(f"{path} is there already; allowed: --output FILE")
    return path


def output_folder(path: Path) -> Path:
    """The folder of results, which may be a new one; SettingError if there can be none, or if it is a run's."""
    if (path / "config.json").exists():
        raise SettingError(f"--output = {path} is a run, whose results stay; allowed: another folder, also one in it")
    found = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not found.is_dir():
        raise SettingError(f"--output = {path}; allowed: a folder")
    return path
