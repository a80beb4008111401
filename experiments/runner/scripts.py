"""Where the script of a run lies, and how its experiment is found again.

The experiments of `metarl.experiments` are found by their name. For any other, config.json holds the entry `script`:

    path        of the script, absolute
    relative    the same, as seen from the run directory
    module      the name under which Python imports it, where it is a module of a package; else null

The entry is null where no script holds the experiment, as in a notebook. Whoever opens the run imports the script, that
is, executes it.
"""

import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

from metarl.experiments.runner.experiment import Experiment, find_experiment
from metarl.rl.task_distribution import describe_error
from metarl.runs import RunError

SCRIPT_HELP = "script of the run's experiment, where it is no longer where config.json says"

_OWN = Path(__file__).resolve().parents[1]  # where the scripts of `metarl.experiments` lie
_HOW = "--script FILE, or open_run(RUN, script=FILE)"

_importing: ContextVar[bool] = ContextVar("importing", default=False)


def entry_of(experiment: Experiment, directory: Path) -> dict[str, Any]:
    """The entry `script` of config.json, as a dict; an empty one for the experiments of this package.

    Args:
        experiment: that a run belongs to.
        directory: of the run.
    """
    if _holds(sys.modules.get(f"metarl.experiments.{experiment.name}"), experiment):
        return {}
    holder = next((module for module in _modules() if _holds(module, experiment)), None)
    if holder is None or (file := getattr(holder, "__file__", None)) is None:
        return {"script": None}
    path = Path(file).resolve()
    if path == _OWN / f"{experiment.name}.py":
        return {}
    spec = getattr(holder, "__spec__", None)  # of a script there is none, with `python -m` it has the module's name
    module = spec.name if spec is not None and "." in spec.name else None
    return {"script": {"path": str(path), "relative": os.path.relpath(path, directory.resolve()), "module": module}}


def experiment_of_config(config: Mapping[str, Any], directory: Path, script: Path | None = None) -> Experiment:
    """The experiment of a run, whose script is imported.

    Args:
        config: the content of config.json.
        directory: of the run.
        script: where the script is now; None for where config.json says it is.

    Raises:
        RunError: a script that is not there or cannot be imported, or an experiment that is in none.
    """
    name, entry = str(config.get("experiment")), config.get("script", {})
    known = dict.fromkeys(("path", "relative", "module"))
    if entry is not None and (not isinstance(entry, dict) or not all(map(_is_text, {**known, **entry}.values()))):
        raise RunError(f"{directory / 'config.json'}: script = {entry!r}; allowed: an object with path and relative")
    entry = {**known, **(entry or {})}
    if script is not None:
        if not script.is_file():
            raise RunError(f"the script {script} does not exist; allowed: a Python file with the experiment {name!r}")
        return _experiment_in(script, name, entry["module"])
    if entry["path"] is not None:
        places = [Path(entry["path"]), directory / (entry["relative"] or entry["path"])]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise RunError(f"the script of {directory} is no longer {places[0]}; allowed: {_HOW}")
        return _experiment_in(path, name, entry["module"])
    if "script" not in config:
        try:
            return find_experiment(name)
        except RunError as error:
            raise RunError(f"{error}; allowed: {_HOW}") from error
    if found := _experiments(sys.modules["__main__"], name):
        return found[0]
    raise RunError(f"the run {directory} names no script with its experiment {name!r}; allowed: {_HOW}")


def being_imported() -> bool:
    """Whether a script is imported for its experiment now, so that it must not start a run."""
    return _importing.get()


def _experiment_in(path: Path, name: str, module: str | None) -> Experiment:
    imported = _import(path.resolve(), module)
    if found := _experiments(imported, name):
        return found[0]
    others = ", ".join(of.name for of in _experiments(imported)) or "none"
    raise RunError(f"{path} has no experiment {name!r} at its top level, such as EXPERIMENT = ...; found: {others}")


def _import(path: Path, module: str | None) -> ModuleType:
    """Import a script as a module, or return the one that has been imported; RunError saying what fails in it."""
    for loaded in _modules():
        file = getattr(loaded, "__file__", None)
        if file is not None and os.path.basename(file) == path.name and Path(file).resolve() == path:
            return loaded
    root, name = _name_of(path, module)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))  # as of a script that Python runs
    token = _importing.set(True)
    try:
        if name == module:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise RunError(f"{path} is no Python file; allowed: {_HOW}")
        made = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
        spec.loader.exec_module(made)
        return made
    except (Exception, SystemExit) as error:  # user code may raise anything
        sys.modules.pop(name, None)
        if isinstance(error, RunError):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" in line {lines[-1]}" if lines else ""
        raise RunError(f"{path} cannot be imported: {describe_error(error)}{where}") from error
    finally:
        _importing.reset(token)


def _name_of(path: Path, module: str | None) -> tuple[Path, str]:
    """The folder and the name by which Python imports a script; a name of its own unless it is still that module."""
    if module is not None:
        parts = module.split(".")
        file = path.parent if path.name == "__init__.py" else path.with_suffix("")
        if list(file.parts[-len(parts) :]) == parts:
            return Path(*file.parts[: -len(parts)]), module
    return path.parent, f"{path.stem}_{blake2b(str(path).encode(), digest_size=4).hexdigest()}"


def _modules() -> list[ModuleType]:
    """All modules that are loaded, the script that Python runs before the others."""
    return [sys.modules["__main__"], *sys.modules.values()]


def _holds(module: ModuleType | None, experiment: Experiment) -> bool:
    return any(value is experiment for value in list(getattr(module, "__dict__", {}).values()))


def _experiments(module: ModuleType, name: str = "") -> list[Experiment]:
    """The experiments at the top level of a module, or those of a name."""
    found = [value for value in vars(module).values() if isinstance(value, Experiment)]
    return [experiment for experiment in found if name in ("", experiment.name)]


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)
