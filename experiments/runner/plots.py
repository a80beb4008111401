"""Figures that experiments share."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarl.runs import write_atomically

COLORS = (*(f"C{number}" for number in range(10)), "black", "gold", "lightgreen", "navy", "deeppink", "tan")


def adaptation(evaluation: Any) -> Figure:
    """Performance against gradient steps: the mean with its uncertainty, over the tasks one by one."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    steps = range(len(evaluation.mean))
    axes.plot(steps, evaluation.per_task, color="0.85", linewidth=0.8, zorder=1)
    uncertainty, errors = evaluation.uncertainty
    axes.errorbar(steps, evaluation.mean, errors, marker="o", capsize=3, zorder=2)
    axes.set(xlabel="gradient steps", ylabel=evaluation.name, xticks=list(steps))
    axes.set_title(f"mean ± {uncertainty} over {evaluation.per_task.shape[1]} test tasks (grey: each task)")
    return figure


@dataclass(frozen=True)
class Compared:
    """One method of a comparison; without results of ours only what was published is drawn.

    Attributes:
        name: of the method.
        published: mean returns after 0, 1, ... gradient steps.
        label: in the legend.
        means, errors: of ours after 0, 1, ... gradient steps, errors None of a single seed.
        training: returns by iteration of each seed, before and after one step; empty where there are none.
        env_steps: after each iteration, of each seed.
    """

    name: str
    published: Sequence[float]
    label: str = ""
    means: Sequence[float] = ()
    errors: Sequence[float] | None = None
    training: Sequence[Sequence[Sequence[float]]] = ()
    env_steps: Sequence[np.ndarray] = ()


def comparison(title: str, methods: Sequence[Compared]) -> Figure:
    """Returns of several methods: on test tasks against gradient steps, in training against environment steps."""
    picture = Figure(figsize=(10, 6), layout="constrained")
    steps_axes, curve_axes = picture.subplots(1, 2, sharey=True)
    for index, method in enumerate(methods):
        color = COLORS[index]
        for runs, style in zip(method.training, ("--", "-"), strict=False):
            if runs:
                line = {"color": color, "linestyle": style}
                _draw_curves(curve_axes, runs, method.env_steps, line)
        beside = 0.04 * (index - len(methods) / 2)  # so that no marker hides another
        _draw_steps(steps_axes, method, color, beside)
    heading = "test tasks" + _cut_below(steps_axes, methods)
    steps_axes.set(xlabel="gradient steps", ylabel="return", title=heading)
    steps_axes.set_xticks(range(4))
    picture.legend(fontsize=8, loc="outside lower center", ncols=2)
    curve_axes.set(xlabel="environment steps (millions)", title="training: before (dashed) and after one step")
    curve_axes.set_visible(curve_axes.has_data())
    picture.suptitle(f"{title}: mean over seeds and, of several, its standard error")
    return picture


def _draw_steps(axes: Axes, method: Compared, color: str, beside: float) -> None:
    """Ours and the published returns against gradient steps; across the axes where there is no step."""
    published: dict[str, Any] = {"color": color, "linestyle": ":", "label": f"{method.name}, published"}
    if len(method.means) == 1:
        axes.axhline(method.means[0], color=color, label=method.label)
        if method.published:
            axes.axhline(method.published[0], **published)
        return
    if method.means:
        steps = np.arange(len(method.means)) + beside
        ours: dict[str, Any] = {"color": color, "marker": "o", "markersize": 4, "capsize": 3, "label": method.label}
        axes.errorbar(steps, method.means, method.errors, **ours)
    if method.published:
        axes.plot(np.arange(len(method.published)) + beside, method.published, marker="x", **published)


def _cut_below(axes: Axes, methods: Sequence[Compared]) -> str:
    """Leave out what lies so low that it would flatten all others; says so for the title."""
    lowest = {method.name: min([*method.means, *method.published]) for method in methods}
    top = max(max([*method.means, *method.published]) for method in methods)
    worst, *others = sorted(lowest, key=lambda name: lowest[name])
    if len(others) < 2 or lowest[worst] >= 2 * lowest[others[0]] - top:
        return ""
    bottom = lowest[others[0]]
    axes.set_ylim(bottom - 0.2 * (top - bottom), top + 0.1 * (top - bottom))
    return f" ({worst} goes on below)"


def _draw_curves(
    axes: Axes, runs: Sequence[Sequence[float]], env_steps: Sequence[np.ndarray], line: dict[str, Any]
) -> None:
    """Returns of training by seed: a moving average over 2 % of the iterations; faint, the mean or the spread."""
    length = min(map(len, runs))
    shared = np.array([values[:length] for values in runs])
    steps = np.mean([taken[:length] for taken in env_steps], axis=0) / 1e6
    mean, faint = shared.mean(axis=0), {"color": line["color"], "alpha": 0.2}
    if len(runs) > 1:
        error = shared.std(axis=0, ddof=1) / len(runs) ** 0.5
        axes.fill_between(steps, mean - error, mean + error, linewidth=0, **faint)
    else:
        axes.plot(steps, mean, linewidth=1, **faint)
    width = max(1, len(mean) // 50)
    before = (width - 1) // 2
    smooth = np.convolve(mean, np.full(width, 1 / width), "valid")
    axes.plot(steps[before : before + len(smooth)], smooth, linewidth=1, **line)


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write plain data, or leave the file as it was."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
