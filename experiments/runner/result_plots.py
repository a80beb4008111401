"""Pictures of the results that are kept, of at most six lines each."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarl.experiments.runner.arrival import Arrival

MOST_LINES = 6
_PUBLISHED = {"color": "black", "linestyle": ":", "marker": "x"}


@dataclass(frozen=True)
class Line:
    """Mean returns after 0, 1, ... gradient steps.

    Attributes:
        label: in the legend.
        means: after 0, 1, ... steps; a single one is drawn across the picture.
        errors: standard errors over seeds, or None of a single seed.
        published: whether the paper reports it, and not we.
    """

    label: str
    means: Sequence[float]
    errors: Sequence[float] | None = None
    published: bool = False


def adaptation(title: str, lines: Sequence[Line]) -> Figure:
    """Returns on test tasks against gradient steps, with standard errors over seeds."""
    figure, axes = _page(len(lines))
    count = max(len(line.means) for line in lines)
    beside = np.linspace(-0.06, 0.06, len(lines))  # so that no marker hides another
    own, handles = 0, list[Any]()
    for line, offset in zip(lines, beside, strict=True):
        style: dict[str, Any] = dict(_PUBLISHED) if line.published else {"color": f"C{own}", "marker": "o"}
        own += not line.published
        if len(line.means) == 1:
            handles.append(axes.axhline(line.means[0], color=style["color"], linestyle="--"))
        else:
            steps = np.arange(len(line.means)) + offset
            handles.append(axes.errorbar(steps, line.means, line.errors, markersize=5, capsize=3, **style))
    axes.set(xlabel="gradient steps", ylabel="return on test tasks", xticks=range(count), title=title)
    figure.legend(handles, [line.label for line in lines], loc="outside lower center", fontsize=9)
    return figure


def training(title: str, rows: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """Returns in training after one gradient step against environment steps: mean and standard error over seeds.

    Args:
        title: of the picture.
        rows: of each row, by its name, the environment steps and the returns of each seed; the first is drawn on top.
    """
    figure, axes = _page(len(rows))
    for index, (name, seeds) in enumerate(rows.items()):
        _curve(axes, seeds, {"color": f"C{index}", "zorder": 3 - index / 10}, name)
    axes.set(xlabel="environment steps (millions)", ylabel="return in training after one step", title=title)
    axes.set_xlim(left=0)
    figure.legend(loc="outside lower center", fontsize=9)
    return figure


def arrivals(rows: Sequence[tuple[str, str, Sequence[Arrival | None]]]) -> Figure:
    """Environment steps until each seed exceeded the published return after one step; a cross is a seed that never did.

    Args:
        rows: of each the environment's name, the row's, and when each seed arrived, None if it never did.
    """
    figure = Figure(figsize=(7, 1.2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(name for _, name, _ in rows))
    most = 2 * max(of.env_steps for *_, seeds in rows for of in seeds if of is not None) / 1e6
    for height, (_, name, seeds) in enumerate(rows):
        style: dict[str, Any] = {"color": f"C{names.index(name)}", "linestyle": "", "alpha": 0.7}
        arrived = [of.env_steps / 1e6 for of in seeds if of is not None]
        axes.plot(arrived, [height] * len(arrived), marker="o", **style)
        missing = len(seeds) - len(arrived)
        axes.plot([most * 1.15**index for index in range(missing)], [height] * missing, marker="x", **style)
    labels = [f"{environment.replace('_', ' ')}\n{textwrap.fill(name, 36)}" for environment, name, _ in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="million environment steps (x: never)", xscale="log", title="time to the published return")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    return figure


def errors_by_shots(title: str, panels: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Mean squared errors against gradient steps, a panel for each number of support examples.

    Args:
        title: of the picture.
        panels: by heading, and in it by row, means after 0, 1, ... gradient steps.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    handles: dict[str, Any] = {}
    for axes, (heading, rows) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        for index, (name, means) in enumerate(rows.items()):
            if len(means) == 1:
                handles[name] = axes.axhline(means[0], color=f"C{index}", linestyle="--")
            else:
                [handles[name]] = axes.plot(means, color=f"C{index}", marker=".")
        axes.set(xlabel="gradient steps", title=heading, yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean squared error on test tasks")
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles))
    figure.suptitle(title)
    return figure


def by_instance(title: str, lines: Sequence[Line]) -> Figure:
    """Accuracies at the first, second, ... image of a class in a sequence, with standard errors over seeds.

    Args:
        title: of the picture.
        lines: whose means are by instance, in place of gradient steps.
    """
    figure, axes = _page(len(lines))
    for line in lines:
        instances = range(1, len(line.means) + 1)
        axes.errorbar(instances, line.means, line.errors, marker="o", markersize=5, capsize=3, label=line.label)
    axes.set(xlabel="instance of a class in the sequence", ylabel="accuracy on test tasks", ylim=(0, 1), title=title)
    figure.legend(loc="outside lower center", fontsize=9)
    return figure


def _page(lines: int) -> tuple[Figure, Axes]:
    """A picture with room for a legend of some lines below its axes."""
    figure = Figure(figsize=(7, 4 + 0.22 * lines), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _curve(axes: Axes, seeds: Sequence[tuple[np.ndarray, np.ndarray]], style: dict[str, Any], label: str) -> None:
    """Draw the mean over seeds, smoothed over a fiftieth of its points, as far as all seeds go."""
    first, last = max(steps[0] for steps, _ in seeds), min(steps[-1] for steps, _ in seeds)
    points = np.linspace(first, last, min(len(steps) for steps, _ in seeds))
    values = _smoothed(np.array([np.interp(points, steps, returns) for steps, returns in seeds]))
    points = _smoothed(points[None])[0] / 1e6
    mean = values.mean(axis=0)
    axes.plot(points, mean, label=label, **style)
    if len(values) > 1:
        error = values.std(axis=0, ddof=1) / len(values) ** 0.5
        axes.fill_between(points, mean - error, mean + error, alpha=0.2, linewidth=0, **style)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Moving averages over the last axis, (n, points)."""
    width = max(1, values.shape[1] // 50)
    return np.array([np.convolve(row, np.full(width, 1 / width), "valid") for row in values])
