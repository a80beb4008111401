"""Evaluations on images: what was predicted, as a picture, and the accuracy with other numbers of shots and ways."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from metarl.core.evaluation import standard_error
from metarl.core.randomness import keyed_generator
from metarl.few_shot.evaluation import FewShotEvaluation
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.tasks import Examples, FewShotTasks, ImageEpisodes

_SHOTS, _WAYS = (1, 2, 3, 5, 10), (2, 5, 10, 20, 50)
_TASKS, _QUERIES = 50, 5  # of a point of a curve
_BLOCK = 10  # tasks that are drawn together
_MOST_ROWS, _MOST_SUPPORT, _MOST_QUERIES, _MOST_COLUMNS = 10, 5, 8, 24  # of a picture
_RIGHT, _WRONG = (0.75, 0.9, 0.75), (0.85, 0.1, 0.1)


@dataclass(frozen=True)
class Curve:
    """Accuracies of tasks with other numbers of shots or ways.

    Attributes:
        counts: the numbers of shots or ways.
        mean: accuracy over the tasks of each.
        standard_error: of the means.
    """

    counts: tuple[int, ...]
    mean: tuple[float, ...]
    standard_error: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ImageEvaluation(FewShotEvaluation):
    """An evaluation on images.

    Attributes:
        curves: of `shots`, with as many ways as the evaluation, and of `ways`, with as many shots, for methods that
            take other numbers of them.
    """

    curves: Mapping[str, Curve]

    def to_json(self) -> dict[str, Any]:
        """As of any evaluation, with the curves."""
        curves = {name: {key: list(values) for key, values in vars(of).items()} for name, of in self.curves.items()}
        return {**super().to_json(), **({"curves": curves} if curves else {})}


def accuracy_curves(learner: FewShotLearner, num_tasks: int, any_ways: bool) -> dict[str, Curve]:
    """Measure a learner on test tasks with other numbers of shots, and of ways, as far as there are images.

    Args:
        learner: whose method takes any number of shots, with `ImageEpisodes` as distribution; the tasks are of the same
            kind, such as `ShuffledEpisodes`.
        num_tasks: of the evaluation, which is the most that a point of a curve takes.
        any_ways: whether the method takes any number of ways, too; else there is no curve of them.
    """
    episodes: Any = learner.task_distribution
    images = {"test": episodes.images["test"]}
    chosen = {"shots": [(episodes.ways, shots) for shots in sorted({*_SHOTS, episodes.shots})]}
    if any_ways:
        chosen["ways"] = [(ways, episodes.shots) for ways in sorted({*_WAYS, episodes.ways})]
    curves = {}
    for name, tasks in chosen.items():
        points: dict[int, np.ndarray] = {}
        for ways, shots in tasks:
            try:
                distribution = type(episodes)(images, ways, shots, min(episodes.queries, _QUERIES))
            except ValueError:  # too few classes or images
                continue
            points[shots if name == "shots" else ways] = _accuracies(learner, distribution, min(num_tasks, _TASKS))
        means = tuple(float(values.mean()) for values in points.values())
        curves[name] = Curve(tuple(points), means, tuple(standard_error(values) for values in points.values()))
    return curves


def draw_predictions(evaluation: ImageEvaluation) -> Figure:
    """The first tasks of an evaluation: a row per class with support and query images, wrong predictions in red."""
    learner, step = evaluation.learner, len(evaluation.mean) - 1
    grid = _Grid.of(evaluation.tasks)
    shown = evaluation.tasks.of_tasks(slice(0, grid.tasks))
    statistics = None if evaluation.statistics is None else evaluation.statistics[step]
    states = learner.adapt(shown.support, step)
    predicted = learner.predict(states[-1], shown.query.inputs, statistics).argmax(dim=2)
    figure = Figure(
        figsize=(0.9 + grid.tasks * (0.5 * grid.columns + 0.9), 1.3 + 0.5 * grid.rows), layout="constrained"
    )
    for task, axes in enumerate(figure.subplots(1, len(shown), squeeze=False)[0]):
        part = shown.of_tasks(slice(task, task + 1))
        right = predicted[task] == shown.query.targets[task]
        canvas = np.ones((grid.rows, grid.columns, *_tile(part.query.inputs[0, 0]).shape))
        grid.fill(canvas, part.support, None, range(grid.support))
        queries = range(grid.support + 1, grid.columns)
        wrong = grid.fill(canvas, part.query, predicted[task], queries)
        axes.imshow(canvas.swapaxes(1, 2).reshape(-1, canvas.shape[1] * canvas.shape[3], 3), extent=grid.extent)
        box = {"facecolor": _WRONG, "edgecolor": "none", "pad": 1.5}
        for row, column, guess in wrong:
            axes.text(column + 0.42, row + 0.4, str(guess), color="white", fontsize=8, ha="right", bbox=box)
        axes.set_yticks(range(grid.rows), [f"class {number}" if not task else number for number in range(grid.rows)])
        axes.set_xticks([(grid.support - 1) / 2, (queries[0] + queries[-1]) / 2], ["support", "query"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(f"task {task}: {int(right.sum())} of {len(right)} right", fontsize=9)
    figure.suptitle("query images in red were taken for the class whose number they carry", fontsize=9)
    return figure


def draw_curves(evaluation: ImageEvaluation) -> Figure:
    """The accuracy against shots, and against ways where it was measured, with standard errors over tasks."""
    episodes: Any = evaluation.learner.task_distribution
    count = len(evaluation.curves)
    figure = Figure(figsize=(4.5 * count, 3.6), layout="constrained")
    fixed = {"shots": f"{episodes.ways} ways", "ways": f"{episodes.shots} shot{'s' * (episodes.shots > 1)}"}
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for axes, (name, curve) in zip(panels, evaluation.curves.items(), strict=True):
        axes.errorbar(curve.counts, curve.mean, curve.standard_error, marker="o", capsize=3)
        chance = [1 / episodes.ways if name == "shots" else 1 / ways for ways in curve.counts]
        axes.plot(curve.counts, chance, ":", color="0.5", label="chance")
        axes.set_xscale("log")
        axes.set_xticks(curve.counts, [str(count) for count in curve.counts])
        axes.minorticks_off()
        axes.set(xlabel=f"{name} ({fixed[name]})", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    panels[0].legend(fontsize=8)
    return figure


def _accuracies(learner: FewShotLearner, distribution: ImageEpisodes, num_tasks: int) -> np.ndarray:
    """The accuracy of each test task, (M,)."""
    found = []
    for block, first in enumerate(range(0, num_tasks, _BLOCK)):
        count = min(_BLOCK, num_tasks - first)
        tasks = distribution.sample(count, "test", keyed_generator(learner.seed, "test/curves", block))
        found.append(learner.metric(tasks.to(learner.device), 0, first_task=first)[0].double().cpu().numpy())
    return np.concatenate(found)


@dataclass(frozen=True)
class _Grid:
    """How many tasks, classes, support and query images of each class a picture shows."""

    tasks: int
    rows: int
    support: int
    queries: int

    @classmethod
    def of(cls, tasks: FewShotTasks) -> Self:
        """As many tasks as there is room for."""
        counts = [int(torch.bincount(of.targets[0]).max()) for of in (tasks.support, tasks.query)]
        support, queries = min(counts[0], _MOST_SUPPORT), min(counts[1], _MOST_QUERIES)
        fitting = max(1, min(4, _MOST_COLUMNS // (support + queries + 2)))
        ways = int(tasks.support.targets.max()) + 1
        return cls(min(fitting, len(tasks)), min(ways, _MOST_ROWS), support, queries)

    @property
    def columns(self) -> int:
        """Those of a task: support images, a gap, query images."""
        return self.support + 1 + self.queries

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top, where the middle of each image has whole coordinates."""
        return -0.5, self.columns - 0.5, self.rows - 0.5, -0.5

    def fill(
        self, canvas: np.ndarray, examples: Examples, predicted: Tensor | None, columns: range
    ) -> list[tuple[int, int, int]]:
        """Put a task's images into a canvas (rows, columns, height, width, 3), those of each class in its row.

        Returns:
            row, column and predicted class of those images whose prediction is another class.
        """
        places, wrong = [0] * (int(examples.targets.max()) + 1), []
        for number, label in enumerate(examples.targets[0].tolist()):
            place = places[label]
            places[label] += 1
            if label >= self.rows or place >= len(columns):
                continue
            guess = label if predicted is None else int(predicted[number])
            frame = None if predicted is None else _RIGHT if guess == label else _WRONG
            canvas[label, columns[place]] = _tile(examples.inputs[0, number], frame, thick=guess != label)
            if guess != label:
                wrong.append((label, columns[place], guess))
        return wrong


def _tile(image: Tensor, frame: tuple[float, float, float] | None = None, thick: bool = False) -> np.ndarray:
    """An image (H, W, C) from 0 to 1 as RGB, within a white border and in that a frame."""
    height, width = image.shape[:2]
    border = max(2, round(0.1 * min(height, width)))
    tile = np.ones((height + 2 * border, width + 2 * border, 3))
    if frame is not None:
        outside = border // 3 if thick else border // 2
        tile[outside : len(tile) - outside, outside : tile.shape[1] - outside] = frame
    if frame is not None and not thick:
        inside = border // 2 + max(1, border // 4)
        tile[inside : len(tile) - inside, inside : tile.shape[1] - inside] = 1.0
    tile[border : border + height, border : border + width] = image.float().cpu().clamp(0, 1).numpy()
    return tile
