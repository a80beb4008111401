"""Runs from their directories: started, resumed or opened, each with the state that belongs to it."""

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from metarl.core import distributed
from metarl.core.settings import SettingError
from metarl.core.validation import require, require_whole
from metarl.experiments.runner import migration, scripts
from metarl.experiments.runner.command_line import Request
from metarl.experiments.runner.config_file import (
    VERSION,
    changed_fixed_setting,
    commit,
    new_config,
    require_unedited,
    settings_of,
    to_json,
    values_of,
)
from metarl.experiments.runner.experiment import Experiment
from metarl.experiments.runner.flat_settings import flag, from_flat, require_effect, to_flat, updated
from metarl.experiments.runner.machine import choose_device
from metarl.runs import Run, RunError

CHECKPOINT, BEST = "checkpoint.pt", "best.pt"


@dataclass
class Progress:
    """The part of a run's state that is not the learner's: its best iterate by `Experiment.selection_metric`.

    Attributes:
        best_metric: the metric of the best iterate.
        best_iteration: how many iterations had led to it.
    """

    best_metric: float = -math.inf
    best_iteration: int = 0


@dataclass
class ActiveRun:
    """A run that is being written; a context that gives its directory and its environments free.

    Attributes:
        run: its directory.
        settings: what it was started with.
        learner: in its present state; `advance` of the experiment may return another one.
        progress: of the run.
    """

    run: Run
    settings: Any
    learner: Any
    progress: Progress = field(default_factory=Progress)

    def state(self, learner: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What a checkpoint holds of a learner's state, by default the present one; `load_state` reads it."""
        learner = self.learner.state_dict() if learner is None else learner
        return {"learner": dict(learner), "progress": vars(self.progress)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.learner.close()
        self.run.release()


def start_run(experiment: Experiment, request: Request) -> ActiveRun:
    """Start what a command line asks for: a new directory, with the checkpoint of an untrained learner."""
    recipe = experiment.recipe_name(request.recipe, request.given)
    settings = experiment.configure(recipe, **request.given)
    learner = _build(experiment, settings)
    _require_same(experiment, settings, learner)
    if learner.processes.rank > 0:
        return ActiveRun(Run(request.run_dir or Path("runs")), settings, learner)
    directory = request.run_dir or _new_directory(f"{experiment.name}-seed{settings.run.seed}")
    entries = {**scripts.entry_of(experiment, directory), **experiment.data_of(learner)}
    config = {**new_config(experiment, recipe, settings), **entries}
    active = ActiveRun(Run.create(directory, config), settings, learner)
    active.run.save(CHECKPOINT, active.state())
    return active


def resume_run(experiment: Experiment, request: Request) -> ActiveRun:
    """Continue a run from its last checkpoint, with its own settings and what the command line changes of them."""
    assert request.resume is not None
    run = Run.open(request.resume)
    before = to_flat(_settings_of(run, experiment))
    now = updated(experiment.settings, before, request.given)
    if name := changed_fixed_setting(experiment.settings, before, now):
        raise SettingError(f"{flag(name)} = {now[name]} cannot change in a resumed run; allowed: {before[name]}")
    state = _load_checkpoint(experiment, run, CHECKPOINT)
    if "config" in state:
        require_unedited(experiment, run.config, state["config"], run.directory / "config.json")
    settings = from_flat(experiment.settings, now)
    learner = _build(experiment, settings)
    experiment.check_data(run.config, learner)
    progress = _load_state(learner, run, CHECKPOINT, state)
    if learner.iteration >= settings.run.iterations:
        raise SettingError(
            f"--iterations = {settings.run.iterations}; allowed: more than the {learner.iteration} already done "
            f"(to evaluate them: metarl evaluate {run.directory})"
        )
    _require_same(experiment, settings, learner)
    experiment.check_continuable(learner)
    if learner.processes.rank == 0:
        run.claim()
        run.rewind(learner.iteration)
        script = scripts.entry_of(experiment, run.directory)  # which may have been moved since
        config = {**run.config, **script, "version": VERSION, "settings": to_json(settings)}
        run.write_config({**config, **_other_versions(run, learner.iteration)})
    return ActiveRun(run, settings, learner, progress)


def open_run(
    directory: Path | str,
    checkpoint: str = CHECKPOINT,
    changes: Mapping[str, Any] | None = None,
    script: Path | str | None = None,
) -> tuple[Experiment, Any, Any]:
    """Load a run to evaluate it, or to act with it. The script of an experiment of your own is imported for that.

    Args:
        directory: of the run.
        checkpoint: the file of the state, `checkpoint.pt` for the last one or `best.pt`.
        changes: settings by flat name that differ from the run's own, such as `evaluation_tasks`.
        script: of the experiment, where it is no longer where config.json says.

    Returns:
        its experiment, its settings with the changes, and its learner in the state of the checkpoint.

    Raises:
        RunError: a run that cannot be read.
        SettingError: a change that cannot be.
    """
    experiment, settings, state = read_run(directory, checkpoint, changes, script)
    run = Run.open(Path(directory))
    try:
        learner = experiment.build(settings)
    except SettingError as error:
        if changes:
            raise
        raise RunError(f"{run.directory / 'config.json'} cannot be used: {error}") from error
    experiment.check_data(run.config, learner)
    _load_state(learner, run, checkpoint, state)
    return experiment, settings, learner


def read_run(
    directory: Path | str,
    checkpoint: str = CHECKPOINT,
    changes: Mapping[str, Any] | None = None,
    script: Path | str | None = None,
) -> tuple[Experiment, Any, dict[str, Any]]:
    """Read a run without building its learner; arguments and errors as of `open_run`.

    Returns:
        its experiment, its settings with the changes, and the state in the checkpoint.
    """
    run, experiment = Run.open(Path(directory)), experiment_of(directory, script)
    values = updated(experiment.settings, to_flat(_settings_of(run, experiment)), changes or {})
    settings = from_flat(experiment.settings, values)
    require_effect(settings, changes or ())
    return experiment, settings, _load_checkpoint(experiment, run, checkpoint)


def experiment_of(directory: Path | str, script: Path | str | None = None) -> Experiment:
    """The experiment of a run; RunError if there is no run, or its experiment cannot be found or imported."""
    config = Run.open(Path(directory)).config
    return scripts.experiment_of_config(config, Path(directory), None if script is None else Path(script))


def _load_checkpoint(experiment: Experiment, run: Run, checkpoint: str) -> dict[str, Any]:
    """Read the state of a checkpoint; RunError if it is of another experiment or seed."""
    state, path = run.load(checkpoint), run.directory / checkpoint
    if not isinstance(state, dict) or not isinstance(before := state.get("config", run.config), dict):
        raise RunError(f"{path} is not the state of a run")
    try:
        other, own = _identity(experiment, before), _identity(experiment, run.config)
    except SettingError as error:
        raise RunError(f"{path} holds a configuration that cannot be used: {error}") from error
    if other != own:
        raise RunError(f"{path} is of {other}; allowed: {own}, as in config.json")
    return state


def _identity(experiment: Experiment, config: Mapping[str, Any]) -> str:
    name = config.get("experiment")
    if name != experiment.name:
        return str(name)
    return f"{name} with seed {values_of(experiment, config).get('seed')}"


def _load_state(learner: Any, run: Run, checkpoint: str, state: Mapping[str, Any]) -> Progress:
    """Put a learner into the state of a checkpoint; RunError if it is of another run or does not fit."""
    try:
        state = migration.checkpoint(state)
        learner.load_state_dict(state["learner"])
        progress = Progress(**state["progress"])
        number = isinstance(progress.best_metric, int | float) and not isinstance(progress.best_metric, bool)
        require(number, "progress.best_metric", progress.best_metric, "a number")
        require_whole("progress.best_iteration", progress.best_iteration, at_least=0)
        return progress
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.directory / checkpoint} does not fit the settings of the run: {error}") from error


def _settings_of(run: Run, experiment: Experiment) -> Any:
    """The settings of a run; RunError if they are not those of the experiment."""
    if run.config.get("experiment") != experiment.name:
        raise RunError(f"{run.directory} is a run of {run.config.get('experiment')}, not of {experiment.name}")
    try:
        return settings_of(experiment, run.config)
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
    device = choose_device(settings.machine.device)
    try:
        processes = distributed.start(device)
    except ValueError as error:
        raise SettingError(f"--device = {settings.machine.device}: {error}") from error
    values = to_flat(settings)
    for name in ("num_tasks", "evaluation_tasks"):
        if values[name] < processes.world_size:
            raise SettingError(
                f"{flag(name)} = {values[name]} on {processes.world_size} processes; allowed: at least one task on each"
            )
    if settings.machine.shrink_chunks and processes.world_size > 1:
        raise SettingError(f"--shrink-chunks on {processes.world_size} processes; allowed: --task-chunk")
    if distributed.local_rank() > 0:
        processes.all_gather_objects("waits")
    learner = experiment.build(settings)
    if distributed.local_rank() == 0:
        processes.all_gather_objects("has built")
    return learner


def _require_same(experiment: Experiment, settings: Any, learner: Any) -> None:
    """SettingError if the processes of a run are not at the same point of the same run."""
    flags = {flag(name): value for name, value in to_flat(settings).items()}
    for own in ("--threads", "--data", "--cache"):  # of each machine
        flags.pop(own, None)
    state = {"--device": torch.device(learner.device).type, "the iteration": learner.iteration}
    said = learner.processes.all_gather_objects({"the script": experiment.name, **flags, **state})
    for rank, other in enumerate(said):
        for name, value in other.items():
            if value != (first := said[0].get(name)):
                raise SettingError(
                    f"{name} = {value} in process {rank}, {first} in process 0; allowed: the same in all"
                )


def _other_versions(run: Run, iteration: int) -> dict[str, Any]:
    """Which other version of this code continues a run, and from where."""
    earlier, own = run.config.get("resumed", []), commit()
    if not isinstance(earlier, list) or not all(isinstance(note, dict) for note in earlier):
        raise RunError(f"{run.directory / 'config.json'}: resumed = {earlier!r}; allowed: a list of objects")
    last = (earlier[-1] if earlier else run.config).get("commit")
    return {"resumed": [*earlier, {"iteration": iteration, "commit": own}]} if own != last else {}
