"""The records of a run, which process 0 keeps: metrics.jsonl, TensorBoard, checkpoints and the progress bar."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from metarl.core.evaluation import Evaluation
from metarl.experiments.runner import plots
from metarl.experiments.runner.experiment import Experiment
from metarl.experiments.runner.flat_settings import flat_settings, to_flat
from metarl.experiments.runner.settings import Settings
from metarl.experiments.runner.start import BEST, CHECKPOINT, ActiveRun

_LINE_EVERY = 60.0  # seconds
_GROUPS = {  # in TensorBoard, of metrics by the first part of their name; others have a group in their name
    "adaptation_gain": "return",
    "policy_std": "policy",
    "policy_entropy": "policy",
    "means_beyond_bounds": "policy",
    "seconds": "time",
    "steps_per_second": "time",
    "iterations_per_second": "time",
    "env_steps": "data",
    "episodes": "data",
    "failed_episodes": "data",
    "episode_length": "data",
    "inner_kl": "update",
    "inner_kl_penalty": "update",
}


def tag(name: str) -> str:
    """Return what TensorBoard calls a metric: its name, after its group and a slash where the name has no group.

    A metric that is not listed and has no slash in its name is one of the outer optimiser's: `kl` is `update/kl`.
    """
    group = _GROUPS.get(name.split("/")[0], "" if "/" in name else "update")
    return f"{group}/{name}" if group else name


class Records:
    """Writes what each record of a run brings; a context that closes TensorBoard's file and the progress bar."""

    def __init__(self, experiment: Experiment, active: ActiveRun):
        self._experiment, self._active = experiment, active
        started = active.learner.iteration
        self._writer = _writer(active.run.directory, started)
        lines = (f"    {name}: {_plain(value)}" for name, value in to_flat(active.settings).items())
        self._writer.add_text("settings", "\n".join(lines), started)
        # disable=None: no bar where stderr is no terminal
        self._began, self._first = time.monotonic(), started
        self._next_line = self._began + _LINE_EVERY
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
            _draw(plots.of_evaluation(experiment, evaluation), self._writer, iteration, "evaluation")
        active.run.append_metrics(metrics)
        metric = experiment.selection_metric(active.settings, metrics)
        if metric > active.progress.best_metric:
            active.progress.best_metric, active.progress.best_iteration = metric, judged["iteration"]
            active.run.save(BEST, active.state(judged))
        for name, value in metrics.items():
            if name != "iteration":  # the axis of all plots
                self._writer.add_scalar(tag(name), value, iteration)
        self._bar.update(iteration - self._bar.n)
        progress = experiment.progress_text(active.settings, metrics)
        self._bar.set_postfix_str(progress)
        # a line a minute where there is no progress bar, as in a log file
        if self._bar.disable and (now := time.monotonic()) > self._next_line:
            self._next_line, total = now + _LINE_EVERY, active.settings.run.iterations
            seconds = (now - self._began) / (iteration - self._first) * (total - iteration)
            left = tqdm.format_interval(seconds)
            print(f"iteration {iteration} of {total}: {progress}, {left} left", flush=True)

    def save_checkpoint(self) -> None:
        """Save the present state as `checkpoint.pt`."""
        self._active.run.save(CHECKPOINT, self._active.state())


def add_test_evaluation(
    experiment: Experiment,
    settings: Settings,
    evaluation: Evaluation,
    figures: Mapping[str, Figure],
    folder: Path,
    iteration: int,
) -> None:
    """Add an evaluation on test tasks to TensorBoard: metrics and plots, and with the settings a row of HPARAMS.

    Args:
        experiment: of the run.
        settings: of the run and of the evaluation.
        evaluation: on test tasks.
        figures: the plots of it, by name.
        folder: of the events, such as the run's directory.
        iteration: meta-iterations that led to what was evaluated.
    """
    metrics = {f"test/{name}": value for name, value in evaluation.metrics.items()}
    with _writer(folder, iteration) as writer:
        _draw(figures, writer, iteration, "test")
        # run_name: the events go into the folder itself; the metrics become scalars, too
        known, values = flat_settings(experiment.settings), to_flat(settings)
        idle = settings.without_effect
        hyper_parameters = {
            n: _hyper_parameter(v) for n, v in values.items() if known[n].part != "machine" and n not in idle
        }
        writer.add_hparams(hyper_parameters, metrics, run_name=".", global_step=iteration)


def _writer(folder: Path, iteration: int) -> SummaryWriter:
    return SummaryWriter(str(folder), purge_step=iteration + 1)


def _draw(figures: Mapping[str, Figure], writer: SummaryWriter, iteration: int, group: str) -> None:
    for name, figure in figures.items():
        writer.add_figure(f"{group}/{name}", figure, iteration)


def _hyper_parameter(value: Any) -> float | str:
    """A setting's value as the HPARAMS tab shows it: a number or a text."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value) if isinstance(value, bool) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
