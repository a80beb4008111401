"""The records of a run, which process 0 keeps: metrics.jsonl, TensorBoard, checkpoints and the progress bar."""

import time
from collections.abc import Mapping
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from metarl.core.evaluation import Evaluation
from metarl.experiments.runner import plots
from metarl.experiments.runner.experiment import Experiment
from metarl.experiments.runner.flat_settings import to_flat
from metarl.experiments.runner.start import BEST, CHECKPOINT, ActiveRun

_LINE_EVERY = 60.0  # seconds


class Records:
    """Writes what each record of a run brings; a context that closes TensorBoard's file and the progress bar."""

    def __init__(self, experiment: Experiment, active: ActiveRun):
        self._experiment, self._active = experiment, active
        started = active.learner.iteration
        self._writer = _writer(active)
        lines = (f"    {name}: {_plain(value)}" for name, value in to_flat(active.settings).items())
        self._writer.add_text("settings", "\n".join(lines), started)
        # disable=None: no bar where stderr is no terminal
        self._next_line = time.monotonic() + _LINE_EVERY
        self._bar = tqdm(initial=started, total=active.settings.run.iterations, unit="iteration", disable=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()
        self._bar.close()

    def add(self, metrics: dict[str, float], evaluation: Evaluation | None, judged: Mapping[str, Any]) -> None:
        """Add a record; save `best.pt` if its selection metric is the best so far.

        Args:
            metrics: of the iterations since the last record.
            evaluation: on validation tasks, if there was one.
            judged: the learner's state that the selection metric is of.
        """
        active, experiment, iteration = self._active, self._experiment, self._active.learner.iteration
        if evaluation is not None:
            metrics = metrics | {f"evaluation/{name}": value for name, value in evaluation.metrics.items()}
            _draw(experiment, evaluation, self._writer, iteration)
        active.run.append_metrics(metrics)
        metric = experiment.selection_metric(active.settings, metrics)
        if metric > active.progress.best_metric:
            active.progress.best_metric, active.progress.best_iteration = metric, judged["iteration"]
            active.run.save(BEST, active.state(judged))
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, iteration)
        self._bar.update(iteration - self._bar.n)
        progress = experiment.progress_text(active.settings, metrics)
        self._bar.set_postfix_str(progress)
        # a line a minute where there is no progress bar, as in a log file
        if self._bar.disable and time.monotonic() > self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY
            print(f"iteration {iteration} of {active.settings.run.iterations}: {progress}", flush=True)

    def save_checkpoint(self) -> None:
        """Save the present state as `checkpoint.pt`."""
        self._active.run.save(CHECKPOINT, self._active.state())


def add_test_evaluation(experiment: Experiment, active: ActiveRun, evaluation: Evaluation) -> None:
    """Add the evaluation on test tasks to TensorBoard."""
    with _writer(active) as writer:
        for name, value in evaluation.metrics.items():
            writer.add_scalar(f"test/{name}", value, active.learner.iteration)
        _draw(experiment, evaluation, writer, active.learner.iteration, "test/")


def _writer(active: ActiveRun) -> SummaryWriter:
    return SummaryWriter(str(active.run.directory), purge_step=active.learner.iteration + 1)


def _draw(
    experiment: Experiment, evaluation: Evaluation, writer: SummaryWriter, iteration: int, prefix: str = ""
) -> None:
    for name, figure in plots.of_evaluation(experiment, evaluation).items():
        writer.add_figure(prefix + name, figure, iteration)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
