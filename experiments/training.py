"""What all experiment scripts share: the command line of a run, the training loop, its records and its end."""

import importlib
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import metarl
from experiments import pictures
from experiments.configuration import OneLineParser, SettingError, check_settings, from_json, leave, parse, to_json
from experiments.settings import Settings, choose_device
from metarl import distributed
from metarl.distributed import LostProcessError, Processes
from metarl.evaluation import evaluate, held_out_tasks
from metarl.runs import Run, RunError


class RunSettings(Protocol):
    """The settings that every run has; `Settings` says what they mean."""

    @property
    def seed(self) -> int: ...

    @property
    def iterations(self) -> int: ...

    @property
    def threads(self) -> int: ...

    @property
    def checkpoint_every(self) -> int: ...

    @property
    def evaluate_every(self) -> int: ...


@dataclass(frozen=True)
class Experiment:
    """What one script stands for. The methods say what training does in reinforcement learning.

    Attributes:
        name: of the script, and of the runs it makes.
        settings: its configuration class.
        build: makes the learner.
        figures: pictures of its own, by name, made from an evaluation.
        merit_of_start: whether `merit` is that of the meta-parameters that an iteration begins with, as returns in
            training are, and not of those that it ends with.
    """

    merit_of_start: ClassVar[bool] = True

    name: str
    settings: type[Any]
    build: Callable[[Any], Any]
    figures: Callable[[Any], dict[str, Any]] = lambda evaluation: {}

    def check_continuable(self, learner: Any) -> None:
        """RunError if a learner's state, as it was loaded, is enough to evaluate it but not to train on."""

    def advance(self, settings: Any, learner: Any) -> dict[str, float]:
        """Train up to the next record, and return its figures."""
        started, steps_before = time.perf_counter(), learner.env_steps
        figures = step(settings, learner)
        seconds = time.perf_counter() - started
        failed, episodes = int(figures["failed_episodes"]), int(figures["episodes"])
        said = f"{failed} of {episodes} episodes of iteration {learner.iteration}"
        _check_failures(failed / episodes, said, settings)
        figures["steps_per_second"] = (learner.env_steps - steps_before) / seconds
        return figures

    def merit(self, settings: Any, figures: dict[str, float]) -> float:
        """What the best iterate has most of."""
        return figures[f"return/step_{settings.inner_steps}"]

    def shown(self, settings: Any, figures: dict[str, float]) -> str:
        """What the progress bar shows."""
        failed = f", {figures['failed_episodes']:.0f} episodes blew up" if figures["failed_episodes"] else ""
        after, speed = self.merit(settings, figures), figures["steps_per_second"]
        return f"return {figures['return/step_0']:.1f} -> {after:.1f}, {speed:,.0f} steps/s" + failed

    def evaluate(self, settings: Any, learner: Any, split: str) -> Any:
        """Performance after each gradient step; `validation` while training, `test` at its end: here the same tasks."""
        tasks = held_out_tasks(learner, settings.evaluation_tasks)
        evaluation = evaluate(learner, settings.evaluation_steps, tasks, settings.evaluation_episodes)
        share = float(evaluation.failures.mean())
        _check_failures(share, f"{share:.1%} of the episodes of an evaluation", settings)
        return evaluation

    def record(self, settings: Any, learner: Any) -> dict[str, Any]:
        """What the evaluation's file says of the run."""
        return {
            "dynamics": learner.distribution.dynamics,
            "seed": settings.seed,
            "iteration": learner.iteration,
            "env_steps": learner.env_steps,
            "episodes_per_step": settings.evaluation_episodes,
            "inner_step_size": settings.inner_step_size,
            "later_factor": settings.later_factor,
        }


def find_experiment(name: str) -> Experiment:
    """The experiment of a script in this folder; RunError if there is none of that name."""
    try:
        module: ModuleType = importlib.import_module(f"experiments.{name}")
        return module.EXPERIMENT
    except (ModuleNotFoundError, AttributeError) as error:
        raise RunError(f"experiment {name!r} is not known to this version of metarl") from error


def main(experiment: Experiment, arguments: Sequence[str] | None = None, evaluated: bool = True) -> None:
    """Run a script: train, evaluate, and say where to look. Bad input ends with one line and exit status 2.

    A run that the user stopped ends with 130, as of any program that an interrupt ended; with several processes it is
    torchrun that says how it ended. `evaluated=False` leaves out the evaluation.
    """
    with one_line_errors(), ExitStack() as held:
        words = sys.argv[1:] if arguments is None else arguments
        run, settings, learner, progress = _start(experiment, words, held)
        finished = train(experiment, run, settings, learner, progress)
        if finished and evaluated:
            evaluation = evaluate_run(experiment, settings, learner, run.directory)
            if learner.processes.rank == 0:
                with _writer(run, learner) as writer:
                    for name, value in evaluation.figures.items():
                        writer.add_scalar(f"test/{name}", value, learner.iteration)
                    _draw(experiment, evaluation, writer, learner.iteration, "test/")
                print(table(evaluation))
                print(f"results in {run.directory}; tensorboard --logdir {run.directory}")
        distributed.end()
        if not finished and learner.processes.size == 1:
            sys.exit(130)


def prepare(experiment: Experiment, arguments: Sequence[str]) -> None:
    """Start a run and leave it untrained, with its first checkpoint."""
    with one_line_errors(), ExitStack() as held:
        _start(experiment, arguments, held)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that a user can mend into one line: exit status 2 for bad input, 1 for a run that broke."""
    try:
        yield
    except (SettingError, RunError) as error:
        leave(2, str(error), patient=distributed.local_rank() > 0)
    except OSError as error:
        reason = f"{error.filename or 'a file'} cannot be used: {error.strerror or error}"
        leave(2, reason, patient=distributed.local_rank() > 0)
    except (metarl.NonFiniteError, metarl.SimulationError, ArithmeticError, DeviceMemoryError) as error:
        leave(1, f"{error}; the last checkpoint is as it was")
    except MemoryError as error:
        advice = "lower --tasks, --episodes or --horizon; the last checkpoint is as it was"
        leave(1, f"not enough memory: {error}; {advice}")
    except LostProcessError as error:
        leave(1, f"{error}; the last checkpoint is as it was", patient=True)
    except KeyboardInterrupt:
        leave(130, "stopped at once; the last checkpoint, if there is one, is as it was")


class DeviceMemoryError(RuntimeError):
    """The device has too little memory; the message says which setting to lower."""


def step(settings: Any, learner: Any) -> dict[str, float]:
    """One meta-iteration; where the device lacks memory, again in smaller chunks if the settings allow it.

    An iteration that failed has changed nothing, and samples the same episodes again.
    """
    while True:
        try:
            return learner.step()
        except torch.OutOfMemoryError as error:
            own = learner.processes.share(learner.tasks)
            chunk = min(learner.task_chunk or learner.tasks, own.stop - own.start)
            smaller = "--task-chunk, --tasks" if chunk > 1 else "--tasks"
            if chunk == 1 or not settings.shrink_chunks:
                raise DeviceMemoryError(
                    f"{learner.device} is out of memory with {chunk} tasks at a time; lower {smaller} or the network"
                ) from error
            learner.task_chunk = (chunk + 1) // 2
        torch.cuda.empty_cache()
        print(f"{learner.device} is out of memory; now {learner.task_chunk} tasks at a time", file=sys.stderr)


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


def _settings_of(run: Run, experiment: Experiment) -> Any:
    """The settings of a run; RunError if they are not those of the experiment."""
    if run.config.get("experiment") != experiment.name:
        raise RunError(f"{run.directory} is a run of {run.config.get('experiment')}, not of {experiment.name}")
    try:
        return from_json(experiment.settings, run.config.get("settings"))
    except SettingError as error:
        raise RunError(f"{run.directory / 'config.json'} cannot be used: {error}") from error


def load_state(learner: Any, run: Run, checkpoint: str) -> Progress:
    """Put a learner into the state of a checkpoint; RunError if it belongs to another configuration."""
    state = run.load(checkpoint)
    try:
        learner.load_state_dict(state["learner"])
        return Progress(**state["progress"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.directory / checkpoint} does not fit the settings of the run: {error}") from error


def train(experiment: Experiment, run: Run, settings: RunSettings, learner: Any, progress: Progress) -> bool:
    """Train to the last iteration; False if the user stopped the run before. Process 0 keeps the records."""
    processes, stopped = learner.processes, False
    lead = processes.rank == 0
    if lead:
        print(f"{experiment.name}: {run.directory}, on {_hardware(learner)}", flush=True)
    records = _writer(run, learner) if lead else nullcontext()
    hidden = None if lead else True
    bar = tqdm(initial=learner.iteration, total=settings.iterations, unit="iteration", disable=hidden)
    with _graceful_stop(processes) as stop, records as writer, bar:
        if writer is not None:
            lines = (f"    {name}: {value}" for name, value in to_json(settings).items())
            writer.add_text("settings", "\n".join(lines), learner.iteration)
        while learner.iteration < settings.iterations and not stopped:
            start = learner.state_dict() if experiment.merit_of_start else None
            figures, evaluation = experiment.advance(settings, learner), None
            if settings.evaluate_every and learner.iteration % settings.evaluate_every == 0:
                evaluation = _evaluate(experiment, settings, learner, bar)
            if evaluation is not None:
                figures |= {f"evaluation/{name}": value for name, value in evaluation.figures.items()}
            stopped = processes.most(len(stop)) > 0
            if writer is None:
                continue
            if evaluation is not None:
                _draw(experiment, evaluation, writer, learner.iteration)
            merit = experiment.merit(settings, figures)
            run.append_metrics(figures)
            last = learner.iteration == settings.iterations
            if merit > progress.best_return:
                judged = start or learner.state_dict()
                progress.best_return, progress.best_iteration = merit, judged["iteration"]
                run.save("best.pt", _state(judged, progress))
            if learner.iteration % settings.checkpoint_every == 0 or last or stopped:
                run.save("checkpoint.pt", _state(learner.state_dict(), progress))
            for name, value in figures.items():
                writer.add_scalar(name, value, learner.iteration)
            bar.update(learner.iteration - bar.n)
            bar.set_postfix_str(experiment.shown(settings, figures))
    if learner.iteration < settings.iterations:
        if lead:
            print(f"stopped after iteration {learner.iteration}; continue with --resume {run.directory}")
        return False
    return True


def _evaluate(experiment: Experiment, settings: RunSettings, learner: Any, bar: tqdm) -> Any:
    """Evaluate on the validation tasks; None where that fails, which leaves training as it is."""
    try:
        return experiment.evaluate(settings, learner, "validation")
    except (metarl.NonFiniteError, metarl.SimulationError) as error:
        if learner.processes.size > 1:  # the others wait for this one's share
            raise
        bar.write(f"no evaluation after iteration {learner.iteration}: {error}", file=sys.stderr)
        return None


def evaluate_run(experiment: Experiment, settings: RunSettings, learner: Any, folder: Path) -> Any:
    """Evaluate on the test tasks; write evaluation.json and the pictures into a folder, such as the run's."""
    evaluation = experiment.evaluate(settings, learner, "test")
    if learner.processes.rank > 0:
        return evaluation
    folder.mkdir(parents=True, exist_ok=True)
    record = {"experiment": experiment.name, **experiment.record(settings, learner), **evaluation.to_json()}
    pictures.save_json(folder / "evaluation.json", record)
    for name, figure in _figures(experiment, evaluation).items():
        figure.savefig(folder / f"{name}.png", dpi=120)
    return evaluation


def table(evaluation: Any) -> str:
    """Performance after each gradient step, as text."""
    digits = 2 if evaluation.name == "return" else 4
    uncertainty, errors = evaluation.uncertainty
    rows = [f"{'steps':>5} {evaluation.name:>10} {'± ' + uncertainty:>8}"]
    rows += [
        f"{step:>5} {mean:>10.{digits}f} {error:>8.{digits}f}"
        for step, (mean, error) in enumerate(zip(evaluation.mean, errors, strict=True))
    ]
    successes = getattr(evaluation, "successes", None)
    if successes is not None:
        shares = ["success", *(f"{rate:.0%}" for rate in successes.mean(axis=1))]
        rows = [f"{row} {share:>8}" for row, share in zip(rows, shares, strict=True)]
    nearest = getattr(evaluation, "nearest_neighbour", None)
    if nearest is not None:
        rows.append(f"nearest neighbour {nearest.mean():.{digits}f}")
    return "\n".join(rows)


def _start(experiment: Experiment, arguments: Sequence[str], held: ExitStack) -> tuple[Run, Any, Any, Progress]:
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
    run.save("checkpoint.pt", _state(learner.state_dict(), progress))
    return run, settings, learner, progress


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


def _hardware(learner: Any) -> str:
    device, processes = torch.device(learner.device), learner.processes.size
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU in use"
    each = f"{processes} processes x " if processes > 1 else ""
    return f"{device} ({gpu}), {each}{torch.get_num_threads()} threads"


def _check_failures(share: float, said: str, settings: Settings) -> None:
    if share > settings.max_failed:
        raise metarl.SimulationError(f"{said} blew up; allowed: a share of {settings.max_failed:g} (--max-failed)")


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


def _state(learner: dict[str, Any], progress: Progress) -> dict[str, Any]:
    return {"learner": learner, "progress": vars(progress)}


def _figures(experiment: Experiment, evaluation: Any) -> dict[str, Any]:
    return {"adaptation": pictures.adaptation(evaluation), **experiment.figures(evaluation)}


def _draw(experiment: Experiment, evaluation: Any, writer: SummaryWriter, iteration: int, prefix: str = "") -> None:
    for name, figure in _figures(experiment, evaluation).items():
        writer.add_figure(prefix + name, figure, iteration)


def _writer(run: Run, learner: Any) -> SummaryWriter:
    return SummaryWriter(str(run.directory), purge_step=learner.iteration + 1)


@contextmanager
def _graceful_stop(processes: Processes) -> Iterator[list[int]]:
    """Collect the first interrupt or termination signal, so that the iteration at hand ends; a second one is final.

    With several processes termination is final at once: torchrun sends it to the others when one has died.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        if distributed.local_rank() == 0:
            print("\nstopping at the next line of metrics.jsonl; once more to stop at once", file=sys.stderr)
        signal.signal(number, previous[signal.Signals(number)])

    numbers = (signal.SIGINT, signal.SIGTERM) if processes.size == 1 else (signal.SIGINT,)
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
