"""Plots of evaluations, and JSON files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarl.core.evaluation import Evaluation, standard_error
from metarl.experiments.runner.experiment import Experiment
from metarl.runs import write_atomically

_SIZE = (4.2, 3.0)  # inches; TensorBoard shows a picture about 320 pixels wide, and text has to be readable there


def of_evaluation(experiment: Experiment, evaluation: Evaluation) -> dict[str, Figure]:
    """All pictures of an evaluation, by name: `adaptation`, and those that the experiment draws."""
    return {"adaptation": adaptation(evaluation), **experiment.plots(evaluation)}


def adaptation(evaluation: Evaluation) -> Figure:
    """The metric against steps: the mean with its standard error, over the tasks one by one."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    steps = range(len(evaluation.mean))
    axes.plot(steps, evaluation.per_task, color="0.85", linewidth=0.8, zorder=1)
    axes.errorbar(steps, evaluation.mean, evaluation.standard_error, marker="o", capsize=3, zorder=2)
    axes.set(xlabel=evaluation.step_name, ylabel=evaluation.metric, xticks=list(steps))
    count = evaluation.per_task.shape[1]
    axes.set_title(f"mean ± standard error, {count} held-out tasks (grey: each)", fontsize=9)
    return figure


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A picture of up to four panels that share their axes, two in a row, so that TensorBoard shows them large.

    Args:
        count: panels that are wanted; of more than four there are four.
    """
    count = min(4, count)
    rows = -(-count // 2)
    figure = Figure(figsize=(_SIZE[0], 0.6 + 1.9 * rows), layout="constrained")
    all_axes = list(figure.subplots(rows, 2, squeeze=False, sharex=True, sharey=True).flat)
    for unused in all_axes[count:]:
        unused.set_axis_off()
    return figure, all_axes[:count]


def by_instance(accuracies: Sequence[np.ndarray]) -> Figure:
    """The accuracy at the first, second, ... image of a class in a sequence, of each task (M,): means over tasks."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    instances = range(1, len(accuracies) + 1)
    errors = [standard_error(of) for of in accuracies]
    axes.errorbar(instances, [of.mean() for of in accuracies], errors, marker="o", capsize=3)
    axes.set(xlabel="instance of a class in the sequence", ylabel="accuracy", xticks=list(instances), ylim=(0, 1))
    axes.set_title(f"mean ± standard error over {len(accuracies[0])} held-out sequences")
    return figure


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write plain data, or leave the file as it was."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
