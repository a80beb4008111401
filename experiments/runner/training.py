"""What all experiment scripts do: read the command line, train, evaluate, and say where to look."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from metarl.core import distributed
from metarl.core.distributed import LostProcessError, Processes
from metarl.core.errors import NonFiniteError, SimulationError
from metarl.core.evaluation import Evaluation
from metarl.core.settings import SettingError
from metarl.experiments.runner import scripts
from metarl.experiments.runner.command_line import leave, read
from metarl.experiments.runner.experiment import DeviceMemoryError, Experiment
from metarl.experiments.runner.start import ActiveRun, resume_run, start_run
from metarl.runs import RunError


def main(experiment: Experiment, arguments: Sequence[str] | None = None, evaluated: bool = True) -> None:
    """Run a script: train, evaluate, and say where to look. Bad input ends with one line and exit status 2.

    A run that the user stopped ends with 130, as of any program that an interrupt ended; with several processes it is
    torchrun that says how it ended. Nothing happens where a script is imported to open a run of its experiment.

    Args:
        experiment: of the script.
        arguments: words of the command line; None for those of the process.
        evaluated: False leaves out the evaluation on test tasks.
    """
    if scripts.being_imported():
        return
    with one_line_errors():
        request = read(experiment, sys.argv[1:] if arguments is None else arguments)
        begin = start_run if request.resume is None else resume_run
        with begin(experiment, request) as active:
            finished, processes = train(experiment, active), active.learner.processes
            if finished and evaluated:
                _evaluate_at_the_end(experiment, active)
        distributed.end()
        if not finished and processes.world_size == 1:
            sys.exit(130)


def train(experiment: Experiment, active: ActiveRun) -> bool:
    """Train to the last iteration; False if the user stopped the run before. Process 0 keeps the records."""
    from metarl.experiments.runner.records import Records  # which imports TensorBoard

    settings, processes = active.settings, active.learner.processes
    iterations, every = settings.run.iterations, settings.evaluation.every
    leads, stopped = processes.rank == 0, False
    if leads:
        print(f"{experiment.name}: {active.run.directory}, on {_hardware(active.learner)}", flush=True)
    with _graceful_stop(processes) as signals, Records(experiment, active) if leads else nullcontext() as records:
        while active.learner.iteration < iterations and not stopped:
            # What the selection metric judges, the state before the iteration or after it, is kept for best.pt.
            judged = active.learner.state_dict() if experiment.judges_start else None
            active.learner, metrics = experiment.advance(settings, active.learner)
            evaluation = None
            if every and active.learner.iteration % every == 0:
                evaluation = _evaluate_on_the_way(experiment, active)
            # All processes stop after the same iteration, whichever got the signal.
            stopped = processes.all_reduce_max(len(signals)) > 0
            if records is not None:
                records.add(metrics, evaluation, judged or active.learner.state_dict())
                last = stopped or active.learner.iteration == iterations
                if last or active.learner.iteration % settings.run.checkpoint_every == 0:
                    records.save_checkpoint()
    if active.learner.iteration >= iterations:
        return True
    if leads:
        print(f"stopped after iteration {active.learner.iteration}; continue with --resume {active.run.directory}")
    return False


def evaluate_run(experiment: Experiment, settings: Any, learner: Any, folder: Path) -> Evaluation:
    """Evaluate on the test tasks; write evaluation.json, the plots and TensorBoard's events into a folder."""
    from metarl.experiments.runner import plots  # which imports matplotlib
    from metarl.experiments.runner.records import add_test_evaluation  # which imports TensorBoard

    evaluation = experiment.evaluate(settings, learner, "test")
    if learner.processes.rank > 0:
        return evaluation
    folder.mkdir(parents=True, exist_ok=True)
    record = {"experiment": experiment.name, **experiment.record(settings, learner), **evaluation.to_json()}
    plots.save_json(folder / "evaluation.json", record)
    figures = plots.of_evaluation(experiment, evaluation)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=160)
    add_test_evaluation(experiment, settings, evaluation, figures, folder, learner.iteration)
    return evaluation


def table(evaluation: Evaluation) -> str:
    """An evaluation as text: a line per step, with the means over tasks and their standard error."""
    counted = evaluation.step_name.split()[-1]
    digits = 2 if evaluation.metric == "return" else 4
    columns = {name: values for name, values in evaluation.others.items() if values.ndim == 2}
    heading = f"{counted:>5} {evaluation.metric:>10} {'± se':>8}"
    rows = [heading + "".join(f" {name:>8}" for name in columns)]
    for step, (mean, error) in enumerate(zip(evaluation.mean, evaluation.standard_error, strict=True)):
        row = f"{step:>{max(5, len(counted))}} {mean:>10.{digits}f} {error:>8.{digits}f}"
        rows.append(row + "".join(f" {values[step].mean():>8.0%}" for values in columns.values()))
    singles = {name: values for name, values in evaluation.others.items() if values.ndim == 1}
    return "\n".join([*rows, *(f"{name} {values.mean():.{digits}f}" for name, values in singles.items())])


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that a user can mend into one line: exit status 2 for bad input, 1 for a run that broke."""
    unharmed = "the last checkpoint is as it was"
    _prepare_streams()
    try:
        yield
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (SettingError, RunError) as error:
        leave(2, str(error), patient=distributed.local_rank() > 0)
    except OSError as error:
        reason = f"{error.filename or 'a file'} cannot be used: {error.strerror or error}"
        leave(2, reason, patient=distributed.local_rank() > 0)
    except (NonFiniteError, SimulationError, ArithmeticError, DeviceMemoryError) as error:
        leave(1, f"{error}; {unharmed}")
    except MemoryError as error:
        leave(1, f"not enough memory: {error}; lower --num-tasks, --episodes-per-task or --horizon; {unharmed}")
    except LostProcessError as error:
        leave(1, f"{error}; {unharmed}", patient=True)
    except KeyboardInterrupt:
        leave(130, "stopped at once; the last checkpoint, if there is one, is as it was")


def _prepare_streams() -> None:
    """Let nothing that is printed end a run: a terminal may lack a character, and a standard stream may be closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _evaluate_on_the_way(experiment: Experiment, active: ActiveRun) -> Evaluation | None:
    """Evaluate on the validation tasks; None where that fails, which leaves training as it is."""
    try:
        return experiment.evaluate(active.settings, active.learner, "validation")
    except (NonFiniteError, SimulationError) as error:
        if active.learner.processes.world_size > 1:  # the others wait for this one's part
            raise
        tqdm.write(f"no evaluation after iteration {active.learner.iteration}: {error}", file=sys.stderr)
        return None


def _evaluate_at_the_end(experiment: Experiment, active: ActiveRun) -> None:
    """Evaluate on the test tasks, and tell the terminal."""
    evaluation = evaluate_run(experiment, active.settings, active.learner, active.run.directory)
    if active.learner.processes.rank == 0:
        print(table(evaluation))
        print(f"results in {active.run.directory}; tensorboard --logdir {active.run.directory}")


def _hardware(learner: Any) -> str:
    device, processes = torch.device(learner.device), learner.processes.world_size
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU in use"
    each = f"{processes} processes x " if processes > 1 else ""
    return f"{device} ({gpu}), {each}{torch.get_num_threads()} threads"


@contextmanager
def _graceful_stop(processes: Processes) -> Iterator[list[int]]:
    """Collect the first interrupt or termination signal, so that the iteration at hand ends; a second one is final.

    With several processes termination is final at once: torchrun sends it to the others when one has died.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        if distributed.local_rank() == 0:
            print(
                "\nstopping as soon as this iteration is recorded; interrupt once more to stop at once", file=sys.stderr
            )
        signal.signal(number, previous[signal.Signals(number)])

    numbers = (signal.SIGINT, signal.SIGTERM) if processes.world_size == 1 else (signal.SIGINT,)
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
