"""Runs from their directories: begun, continued or opened, each with the state that belongs to it."""

import math
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from metarl.core import distributed
from metarl.experiments.runner.configuration import (
    OneLineParser,
    SettingError,
    check_settings,
    from_json,
    parse,
    to_json,
)
from metarl.experiments.runner.experiment import Experiment, find_experiment
from metarl.experiments.runner.settings import choose_device
from metarl.runs import Run, RunError


@dataclass
class Progress:
    """The part of a run's state that is not the learner's: the best iterate by `Experiment.merit`.

    Attributes:
        best_return: its merit.
        best_iteration: how many iterations had led to it.
    """

    best_return: float = -math.inf
    best_iteration: int = 0


def open_run(
    directory: Path | str, checkpoint: str = "checkpoint.pt", changes: Mapping[str, Any] | None = None
) -> tuple[Experiment, Any, Any]:
    """Load a run: its experiment, its settings with changes, and its learner at a checkpoint."""
    run = Run.open(Path(directory))
    experiment = find_experiment(str(run.config.get("experiment")))
    settings = _settings_of(run, experiment)
    then = run.load(checkpoint).get("config", {}).get("settings", {})
    for field in fields(settings):
        if isinstance(field.metadata["changeable"], tuple) and field.name in then:  # it may have been changed since
            settings = replace(settings, **{field.name: then[field.name]})
    for name, value in (changes or {}).items():
        if not hasattr(settings, name):
            flag = name.removeprefix("evaluation_")
            raise SettingError(f"--{flag} means nothing in {experiment.name}; allowed: without it")
        settings = replace(settings, **{name: value})
    try:
        check_settings(settings)
        learner = experiment.build(settings)
    except SettingError as error:
        raise SettingError(str(error).replace("--evaluation-", "--")) from None
    load_state(learner, run, checkpoint)
    return experiment, settings, learner


def start(experiment: Experiment, arguments: Sequence[str], held: ExitStack) -> tuple[Run, Any, Any, Progress]:
    """Begin or resume what the arguments ask for; the run is this process's own as long as `held` is open."""
    parser = OneLineParser(experiment.settings.__doc__ or "")
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="new directory of the run (default runs/NAME-seedN-TIME)"
    )
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue this run, with its settings")
    resumed = _peek_resume(arguments)
    run = Run.open(resumed) if resumed else None
    before = _settings_of(run, experiment) if run else experiment.settings()
    namespace, settings = parse(experiment.settings, arguments, parser, vars(before))
    if run is not None:
        if namespace.run_dir is not None:
            raise SettingError("--run-dir with --resume; allowed: one of the two")
        changed = _changes(before, settings)
        learner = _build(experiment, settings)
        progress = load_state(learner, run, "checkpoint.pt")
        if learner.iteration >= settings.iterations:
            raise SettingError(
                f"--iterations = {settings.iterations}; allowed: more than the {learner.iteration} already done "
                f"(to evaluate them: python experiments/evaluate.py {run.directory})"
            )
        _check_same(experiment, settings, learner)
        experiment.check_continuable(learner)
        if learner.processes.rank == 0:
            run.claim()
            held.callback(run.release)
            run.rewind(learner.iteration)
            run.write_config({**run.config, "settings": to_json(settings), **_resumed(run, learner.iteration, changed)})
        return run, settings, learner, progress
    learner, progress = _build(experiment, settings), Progress()
    _check_same(experiment, settings, learner)
    if learner.processes.rank > 0:
        return Run(namespace.run_dir or Path("runs")), settings, learner, progress
    directory = namespace.run_dir or _new_directory(f"{experiment.name}-seed{settings.seed}")
    run = Run.create(directory, {"experiment": experiment.name, "commit": _commit(), "settings": to_json(settings)})
    held.callback(run.release)
    run.save("checkpoint.pt", saved_state(learner.state_dict(), progress))
    return run, settings, learner, progress


def load_state(learner: Any, run: Run, checkpoint: str) -> Progress:
    """Put a learner into the state of a checkpoint; RunError if it belongs to another configuration."""
    state = run.load(checkpoint)
    try:
        learner.load_state_dict(state["learner"])
        return Progress(**state["progress"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.directory / checkpoint} does not fit the settings of the run: {error}") from error


def saved_state(learner: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """What a checkpoint holds of a learner's state and the run's: `load_state` reads it."""
    return {"learner": learner, "progress": vars(progress)}


def _settings_of(run: Run, experiment: Experiment) -> Any:
    """The settings of a run; RunError if they are not those of the experiment."""
    if run.config.get("experiment") != experiment.name:
        raise RunError(f"{run.directory} is a run of {run.config.get('experiment')}, not of {experiment.name}")
    try:
        return from_json(experiment.settings, run.config.get("settings"))
    except SettingError as error:
        raise RunError(f"{run.directory / 'config.json'} cannot be used: {error}") from error


def _new_directory(name: str) -> Path:
    """A directory in runs that nobody else has, named after the time."""
    name = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        directory = Path("runs") / (name + suffix)
        with suppress(FileExistsError):
            directory.mkdir(parents=True)
            return directory
    raise RunError(f"runs holds 999 runs of the name {name}; allowed: --run-dir")


def _build(experiment: Experiment, settings: Any) -> Any:
    """Meet the other processes, and build the learner: on each machine first in one, which may have to fetch data."""
    device = choose_device(settings.device)
    try:
        processes = distributed.start(device)
    except ValueError as error:
        raise SettingError(f"--device = {settings.device}: {error}") from error
    for name in ("tasks", "evaluation_tasks"):
        if getattr(settings, name) < processes.size:
            flag, value = "--" + name.replace("_", "-"), getattr(settings, name)
            raise SettingError(f"{flag} = {value} on {processes.size} processes; allowed: at least one task on each")
    if settings.shrink_chunks and processes.size > 1:
        raise SettingError(f"--shrink-chunks on {processes.size} processes; allowed: --task-chunk")
    if distributed.local_rank() > 0:
        processes.everyone("waits")
    learner = experiment.build(settings)
    if distributed.local_rank() == 0:
        processes.everyone("has built")
    return learner


def _check_same(experiment: Experiment, settings: Any, learner: Any) -> None:
    """SettingError if the processes of a run are not at the same point of the same run."""
    flags = {"--" + name.replace("_", "-"): value for name, value in to_json(settings).items()}
    for own in ("--threads", "--data", "--cache"):  # of each machine
        flags.pop(own, None)
    state = {"--device": torch.device(learner.device).type, "the iteration": learner.iteration}
    said = learner.processes.everyone({"the script": experiment.name, **flags, **state})
    for rank, other in enumerate(said):
        for name, value in other.items():
            if value != (first := said[0].get(name)):
                raise SettingError(
                    f"{name} = {value} in process {rank}, {first} in process 0; allowed: the same in all"
                )


def _changes(old: Any, new: Any) -> dict[str, Any]:
    """What a resumed run learns otherwise from here on, name to [old, new]; SettingError for what must not change."""
    changes = {}
    for field in fields(new):
        before, now, changeable = getattr(old, field.name), getattr(new, field.name), field.metadata["changeable"]
        if now == before or changeable is True:
            continue
        if not changeable or getattr(new, changeable[0], None) not in changeable[1:]:
            flag = "--" + field.name.replace("_", "-")
            raise SettingError(f"{flag} = {now} cannot change in a resumed run; allowed: {before}")
        changes[field.name] = [before, now]
    return changes


def _resumed(run: Run, iteration: int, changed: Mapping[str, Any]) -> dict[str, Any]:
    """Which other version of this code, or which changed settings, continue a run, and from where."""
    earlier = run.config.get("resumed", [])
    last = earlier[-1]["commit"] if earlier else run.config.get("commit")
    commit = _commit()
    note = {"iteration": iteration, "commit": commit} | ({"changed": changed} if changed else {})
    return {"resumed": [*earlier, note]} if changed or commit != last else {}


def _commit() -> str | None:
    """The version of this code, where it is a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _peek_resume(arguments: Sequence[str]) -> Path | None:
    parser = OneLineParser("")
    parser.add_argument("--resume", type=Path)
    return parser.parse_known_args([word for word in arguments if word not in ("-h", "--help")])[0].resume
