"""What all experiment scripts share: the training loop of a run, its records and its end."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import metarl
from metarl.core import distributed
from metarl.core.distributed import LostProcessError, Processes
from metarl.experiments.runner import plots
from metarl.experiments.runner.configuration import SettingError, leave, to_json
from metarl.experiments.runner.experiment import DeviceMemoryError, Experiment
from metarl.experiments.runner.starting import Progress, saved_state, start
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


def main(experiment: Experiment, arguments: Sequence[str] | None = None, evaluated: bool = True) -> None:
    """Run a script: train, evaluate, and say where to look. Bad input ends with one line and exit status 2.

    A run that the user stopped ends with 130, as of any program that an interrupt ended; with several processes it is
    torchrun that says how it ended. `evaluated=False` leaves out the evaluation.
    """
    with one_line_errors(), ExitStack() as held:
        words = sys.argv[1:] if arguments is None else arguments
        run, settings, learner, progress = start(experiment, words, held)
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
        start(experiment, arguments, held)


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
            before = learner.state_dict() if experiment.merit_of_start else None
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
                judged = before or learner.state_dict()
                progress.best_return, progress.best_iteration = merit, judged["iteration"]
                run.save("best.pt", saved_state(judged, progress))
            if learner.iteration % settings.checkpoint_every == 0 or last or stopped:
                run.save("checkpoint.pt", saved_state(learner.state_dict(), progress))
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
    plots.save_json(folder / "evaluation.json", record)
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


def _hardware(learner: Any) -> str:
    device, processes = torch.device(learner.device), learner.processes.size
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU in use"
    each = f"{processes} processes x " if processes > 1 else ""
    return f"{device} ({gpu}), {each}{torch.get_num_threads()} threads"


def _figures(experiment: Experiment, evaluation: Any) -> dict[str, Any]:
    return {"adaptation": plots.adaptation(evaluation), **experiment.figures(evaluation)}


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
