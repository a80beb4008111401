"""The results that are kept of runs: one file `results/EXPERIMENT/ROW.json` per row of a table.

A row is plain data:

    format       of the file, 1
    experiment   name of the launcher, such as `navigation_2d`
    name         of the row, which is the name of its recipe
    command      that makes the first seed, and others where they went further or less far
    dynamics     of the environment, such as `paper`; only in reinforcement learning
    settings     by flat name, those that all seeds share, without what belongs to a machine
    seeds        one entry per seed:
        seed, commit, machine, seconds     what made it, and how long training took
        settings                           those in which the seed differs from the others, if any
        resumed                            commits that continued the run, each with the iteration before it
        tasks                              parameters of the test tasks; only in reinforcement learning
        last, best                         evaluations of the last and the best iterate: iterations, env_steps, ... and
                                           per metric, such as `return/step_1` (after one gradient step) or
                                           `shots_10/mse/step_1`, the mean, its standard error over tasks and each task;
                                           of images `curves`, the accuracy with other numbers of shots and of ways
        curve                              training, at most 200 points: each is the mean over a block of iterations,
                                           `iteration` and `env_steps` are those at the end of the block
        validation                         evaluations on validation tasks during training, after `iteration`
        training                           mean return after one step in training over a window of environment steps
"""

import json
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from metarl.runs import RunError, write_atomically

_CHECKOUT = Path(__file__).parents[1] / "results"  # which an installed package does not have
FOLDER = _CHECKOUT if _CHECKOUT.is_dir() else Path("results")
REINFORCEMENT = (
    "navigation_2d",
    "half_cheetah_direction",
    "half_cheetah_velocity",
    "ant_velocity",
    "ant_direction",
    "ant_goal",
    "walker_parameters",
    "hopper_parameters",
    "humanoid_direction",
)
SUPERVISED = {  # metric, and gradient steps that have a column
    "sine": ("mse", (0, 1, 5, 10)),
    "omniglot": ("accuracy", (0, 1, 3, 5)),
    "mini_imagenet": ("accuracy", (0, 1, 5, 10)),
    "optimiser": ("mse", (0, 20, 50, 100)),
}
OTHER_TASKS = {  # the setting whose rows have a table of their own, and the metric there
    "sine": ("curves", "mse"),
    "optimiser": ("functions", "cross_entropy"),
}
EXPERIMENTS = (
    *REINFORCEMENT,
    "meta_world",
    "bandits",
    "random_mdps",
    *SUPERVISED,
)  # whose results are kept, in the order of tables
FORMAT = 1
CURVE_POINTS = 200
_COUNTS = ("iteration", "env_steps")
_EVALUATION = "evaluation/"
_METRICS = ("return/", "success/", "accuracy/", "mse/", "cross_entropy/")


def slug(name: str) -> str:
    """The name of a row as a file name, without an ending."""
    return name.replace(", ", "_").replace(" ", "_")


def row_path(experiment: str, name: str) -> Path:
    """Where a row is kept."""
    return FOLDER / experiment / f"{slug(name)}.json"


def load_row(path: Path) -> dict[str, Any]:
    """Read a row; RunError if the file is not one, or of a newer format."""
    return _row_of(path, _load_json(path))


def load_rows(folder: Path | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """All rows that are kept, by experiment and name, in alphabetical order of the files.

    Args:
        folder: of results; None for `FOLDER`.

    Raises:
        RunError: as of `load_row`.
    """
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted((folder or FOLDER).glob("*/*.json")):
        content = _load_json(path)
        if isinstance(content, dict) and "seeds" in content:  # the folders of studies hold other files
            row = _row_of(path, content)
            rows.setdefault(row["experiment"], {})[row["name"]] = row
    return rows


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: not JSON") from error


def _row_of(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or not {"format", "experiment", "name", "seeds"} <= content.keys():
        raise RunError(f"{path} is not a row of results")
    if content["format"] > FORMAT:
        raise RunError(f"{path} has format {content['format']}; this version of metarl reads up to {FORMAT}")
    return content


@contextmanager
def held() -> Iterator[None]:
    """Keep other processes from writing results while some are read in order to be written again.

    The lock is the operating system's; on file systems that have none it lets all pass.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    lock = FileLock(FOLDER / ".lock")
    with suppress(NotImplementedError, OSError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def save_row(path: Path, row: Mapping[str, Any]) -> None:
    """Write a row, or leave the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_text(row).encode())


def to_text(content: Any, indent: str = "") -> str:
    """Plain data as JSON, dicts with a line per entry, lists of plain values on one line."""
    deeper = indent + " "
    if isinstance(content, Mapping) and content:
        lines = [f"{deeper}{json.dumps(name)}: {to_text(value, deeper)}" for name, value in content.items()]
        text = "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    elif isinstance(content, Sequence) and any(isinstance(part, Mapping) for part in content):
        text = "[\n" + ",\n".join(deeper + to_text(part, deeper) for part in content) + f"\n{indent}]"
    else:
        text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text if indent else text + "\n"


def thin(curve: Mapping[str, Sequence[float]], most: int = CURVE_POINTS) -> dict[str, list[float]]:
    """Shorten a curve to a number of points: means over equal blocks of lines, the last of which may be shorter.

    Args:
        curve: columns of equal length. `iteration` and `env_steps` are not averaged: they are those at a block's end.
        most: points that are left at most.
    """
    length = len(next(iter(curve.values())))
    size = math.ceil(length / most)
    thinned: dict[str, list[float]] = {}
    for name, values in curve.items():
        blocks = [values[start : start + size] for start in range(0, length, size)]
        if name in _COUNTS:
            thinned[name] = [int(block[-1]) for block in blocks]
        else:
            thinned[name] = [round(float(np.mean(block)), 2 if name.startswith("return/") else 4) for block in blocks]
    return thinned


def curve_of(lines: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The curve of a run from its metrics, not thinned; empty for a run that was not trained."""
    if not lines:
        return {}
    names = [name for name in lines[0] if name in _COUNTS or name.startswith(_METRICS)]
    return {name: [line[name] for line in lines] for name in names}


def validation_of(lines: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The evaluations on validation tasks during a run, from its metrics; empty if there was none."""
    evaluated = [line for line in lines if any(name.startswith(_EVALUATION) for name in line)]
    if not evaluated:
        return {}
    names = [name for name in evaluated[0] if name in _COUNTS or name.startswith(_EVALUATION)]
    return {name.removeprefix(_EVALUATION): [round(line[name], 5) for line in evaluated] for name in names}


def is_metric(part: Any) -> bool:
    """Whether a part of an evaluation in a row is a metric, with a value for each test task."""
    return isinstance(part, Mapping) and "per_task" in part


def task_values(metric: Mapping[str, Any]) -> list[float]:
    """The value of a metric on each test task, infinite where a task diverged."""
    return [math.inf if value is None else value for value in metric["per_task"]]


def rounded_evaluation(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the file of an evaluation holds, without what the row has in other places, in sensible digits."""
    kept: dict[str, Any] = {}
    for name, value in record.items():
        if is_metric(value):
            digits = 2 if name.startswith("return/") else 5
            per_task = [_rounded(of, digits) for of in value["per_task"]]
            error = _rounded(value["standard_error"], digits + 2)
            kept[name] = {"mean": _rounded(value["mean"], 8), "standard_error": error, "per_task": per_task}
        elif name == "curves":
            kept[name] = {of: {key: _all_rounded(part) for key, part in curve.items()} for of, curve in value.items()}
        elif name not in ("experiment", "dynamics", "seed", "tasks"):
            kept["iterations" if name == "iteration" else name] = value
    return kept


def rounded_tasks(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of test tasks, lists of (M, ...) numbers, in sensible digits."""
    return {name: np.round(values, 4).tolist() for name, values in tasks.items()}


def with_seed(row: Mapping[str, Any], seed: Mapping[str, Any]) -> dict[str, Any]:
    """A row with a seed more, or with another entry for a seed that it has.

    Args:
        row: its seeds may be none.
        seed: an entry, with all of its settings.
    """
    shared = row.get("settings", {})
    others = [{**of, "settings": {**shared, **of.get("settings", {})}} for of in row["seeds"]]
    seeds = sorted([*(of for of in others if of["seed"] != seed["seed"]), seed], key=lambda of: of["seed"])
    settings, shortened = _share_settings(seeds)
    return {**row, "settings": settings, "seeds": shortened}


def command(experiment: str, name: str, iterations: Mapping[int, int], usual: int) -> str:
    """What makes a row: the command of its first seed, and of others that took another number of iterations.

    Args:
        experiment: name of the launcher.
        name: of the recipe.
        iterations: of each seed.
        usual: the recipe's own number of iterations.
    """
    first: dict[int, int] = {}
    for seed, count in iterations.items():
        first.setdefault(count, seed)
    words = f'python experiments/{experiment}.py --recipe "{name}"'
    return " && ".join(
        f"{words} --seed {seed}" + ("" if count == usual else f" --iterations {count}") for count, seed in first.items()
    )


def returns_by_steps(seed: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """The environment steps and the training returns after one step of a seed's curve; None if it has no such returns.

    Curves of the first versions lack the steps; every iteration then counts the same.
    """
    curve = seed.get("curve", {})
    if "return/step_1" not in curve:
        return None
    per_iteration = seed["last"]["env_steps"] / max(1, seed["last"]["iterations"])
    steps = curve.get("env_steps", np.array(curve["iteration"]) * per_iteration)
    return np.array(steps, float), np.array(curve["return/step_1"])


def training_return(curve: Mapping[str, Sequence[float]], window: Sequence[int]) -> float | None:
    """The mean return in training after one step over a window of environment steps; None if the run is shorter.

    Args:
        curve: of all iterations, not thinned.
        window: its first and last environment step.
    """
    if "return/step_1" not in curve or curve["env_steps"][-1] < window[1]:
        return None
    steps = np.asarray(curve["env_steps"])
    last = int(np.abs(steps - window[1]).argmin())
    first = min(last, int(np.searchsorted(steps, window[0], side="right")))
    return float(np.mean(curve["return/step_1"][first : last + 1]))


def training_window(rows: Iterable[Mapping[str, Any]], env_steps: int) -> list[int]:
    """The window of the rows of an experiment that are kept; where there is none, the last fifth of a run's steps."""
    windows = (seed["training"]["env_steps"] for row in rows for seed in row["seeds"] if "training" in seed)
    return next(windows, [int(0.8 * env_steps), env_steps])


def machine() -> str:
    """The processor's architecture and the number of its cores."""
    return f"{platform.machine()}, {os.cpu_count()} cores"


def _share_settings(seeds: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings that all seeds share, and the seeds with the others."""
    missing = object()
    first, *others = [of["settings"] for of in seeds]
    shared = {name: value for name, value in first.items() if all(of.get(name, missing) == value for of in others)}
    parted = []
    for seed in seeds:
        own = {name: value for name, value in seed["settings"].items() if name not in shared}
        rest = {name: value for name, value in seed.items() if name != "settings"}
        parted.append({**rest, "settings": own} if own else rest)
    return shared, parted


def _all_rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 5) for value in values]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
