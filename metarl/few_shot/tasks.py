"""Distributions of supervised few-shot tasks, as data: many tasks are drawn at once.

Axes: M tasks, N examples of a task; images are (N, H, W, C).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from metarl.core.validation import require, require_whole
from metarl.few_shot.images.image_classes import ImagesBySplit, classes_of, split_of

_CHUNK_VALUES = 63_000  # input numbers that a CPU's cache likes to see at a time: 80 Omniglot images


@dataclass(frozen=True)
class Examples:
    """Labelled examples of M tasks. A subclass may hold further tensors with an axis of M tasks.

    Attributes:
        inputs: (M, N, ...).
        targets: (M, N) class numbers, or (M, N, ...) values.
    """

    inputs: Tensor
    targets: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Inputs, targets, and what else there is."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def of_tasks(self, task_slice: slice) -> Self:
        """The examples of some of the tasks."""
        return type(self)(*(tensor[task_slice] for tensor in self.tensors))

    def to(self, device: str | torch.device) -> Self:
        """The examples on a device; those that are there already are not copied."""
        return type(self)(*(tensor.to(device) for tensor in self.tensors))

    def joined(self, other: Self) -> Self:
        """The examples of each task followed by others of the same task, (M, N + N', ...)."""
        pairs = zip(self.tensors, other.tensors, strict=True)
        return type(self)(*(torch.cat(pair, dim=1) for pair in pairs))


@dataclass(frozen=True)
class FewShotTasks:
    """M tasks: support examples to adapt to, and query examples by which the adapted model is judged."""

    support: Examples
    query: Examples

    def __len__(self) -> int:
        return len(self.query.targets)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the support, then of the query examples."""
        return *self.support.tensors, *self.query.tensors

    def like(self, tensors: Sequence[Tensor]) -> Self:
        """Tasks of the same kind that are made of other tensors, in the order of `tensors`."""
        count = len(self.support.tensors)
        return type(self)(type(self.support)(*tensors[:count]), type(self.query)(*tensors[count:]))

    def of_tasks(self, task_slice: slice) -> Self:
        """Some of the tasks."""
        return type(self)(self.support.of_tasks(task_slice), self.query.of_tasks(task_slice))

    def to(self, device: str | torch.device) -> Self:
        """The tasks on a device."""
        return type(self)(self.support.to(device), self.query.to(device))


class FewShotDistribution(Protocol):
    """Where tasks come from. It may have an attribute `ways`, the number of classes of every task."""

    def sample(self, num_tasks: int, split: str, rng: np.random.Generator) -> FewShotTasks:
        """Draw M tasks of a split: `train`, `validation` or `test`; the same generator gives the same tasks."""
        ...


def tasks_per_chunk(examples: Examples) -> int:
    """Return how many tasks to handle at a time: on a CPU as many as its cache holds, on a GPU all of them."""
    inputs = examples.inputs
    return len(inputs) if inputs.is_cuda else max(1, _CHUNK_VALUES // max(1, inputs[0].numel()))


@dataclass(frozen=True)
class Sine:
    """Regression on y = A sin(x - phase): A in [0.1, 5], phase in [0, pi], x in [-5, 5] (Finn et al. 2017, 5.1).

    All splits are the same distribution.

    Attributes:
        shots: K, support points.
        queries: query points.
        oracle: inputs are (x, A, phase), so that nothing is left to adapt to: the paper's oracle.
    """

    shots: int = 10
    queries: int = 10
    oracle: bool = False

    def __post_init__(self) -> None:
        require_whole("shots", self.shots)
        require_whole("queries", self.queries)

    def sample(self, num_tasks: int, split: str, rng: np.random.Generator) -> FewShotTasks:
        """Draw curves and points: inputs (M, N, 1), or (M, N, 3) for the oracle, and targets (M, N, 1)."""
        amplitude = rng.uniform(0.1, 5.0, (num_tasks, 1, 1))
        phase = rng.uniform(0.0, np.pi, (num_tasks, 1, 1))
        x = rng.uniform(-5.0, 5.0, (num_tasks, self.shots + self.queries, 1))
        y = amplitude * np.sin(x - phase)
        if self.oracle:
            x = np.concatenate([x, np.broadcast_to(amplitude, x.shape), np.broadcast_to(phase, x.shape)], axis=2)
        inputs, targets = torch.from_numpy(x).float(), torch.from_numpy(y).float()
        return _divided(inputs, targets, self.shots)


class ImageEpisodes:
    """N-way classification with K examples a class.

    Args:
        images: for each split (classes, examples per class, H, W, C), uint8, or `ImageClasses` where classes have
            images of different number; on the device where tasks are wanted.
        ways: N, classes of a task, numbered in random order.
        shots: K, support images per class.
        queries: query images per class.

    Raises:
        ValueError: numbers that the images do not allow, or splits whose images differ in size.
    """

    def __init__(self, images: ImagesBySplit, ways: int, shots: int, queries: int):
        for name, value in (("ways", ways), ("shots", shots), ("queries", queries)):
            require_whole(name, value)
        self._classes = classes_of(images)
        for split, classes in self._classes.items():
            if ways > len(classes):
                raise ValueError(f"{ways} ways of {len(classes)} {split} classes; allowed: at most {len(classes)}")
            classes.require_examples(split, f"{shots} support and {queries} query", shots + queries)
        self.images, self.ways, self.shots, self.queries = dict(images), ways, shots, queries

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C)."""
        return tuple(next(iter(self._classes.values())).images.shape[1:])

    def sample(self, num_tasks: int, split: str, rng: np.random.Generator) -> FewShotTasks:
        """Draw tasks: inputs (M, N * K, H, W, C) from 0 to 1, targets (M, N * K); examples in the order of classes."""
        images = split_of(self._classes, split)
        classes = draw_distinct(rng, num_tasks, len(images), self.ways).reshape(-1, 1)
        wanted = self.shots + self.queries
        examples = draw_distinct(rng, len(classes), images.examples_of(classes[:, 0]), wanted)
        drawn = images.drawn(classes, examples)
        drawn = drawn.view(num_tasks, self.ways, wanted, *drawn.shape[2:])
        labels = torch.arange(self.ways, device=drawn.device).view(1, -1, 1).expand(num_tasks, -1, wanted)
        support, query = (
            Examples(drawn[:, :, part].flatten(1, 2), labels[:, :, part].flatten(1, 2))
            for part in (slice(0, self.shots), slice(self.shots, None))
        )
        return FewShotTasks(support, query)


def training_episodes(task_distribution: FewShotDistribution, ways: int | None) -> FewShotDistribution:
    """The training tasks of a distribution with another number of classes; the distribution itself for None.

    ValueError unless its tasks are `ImageEpisodes`, or if they have too few classes.
    """
    if ways is None:
        return task_distribution
    require(isinstance(task_distribution, ImageEpisodes), "task_distribution", task_distribution, "ImageEpisodes")
    given: ImageEpisodes = task_distribution  # type: ignore[assignment]
    return ImageEpisodes({"train": given.images["train"]}, ways, given.shots, given.queries)


class ImageBatches:
    """Classification of all classes of a split at once: tasks without support data, of images drawn at random.

    Classes are drawn equally often, and so are the images of a class.

    Args:
        images: as of `ImageEpisodes`.
        size: images of a task.
    """

    def __init__(self, images: ImagesBySplit, size: int):
        require_whole("size", size)
        self._classes = classes_of(images)
        for split, classes in self._classes.items():
            classes.require_examples(split, "1", 1)
        self.images, self.size = dict(images), size

    @classmethod
    def of(cls, task_distribution: FewShotDistribution, size: int) -> Self:
        """Return batches of the images of a distribution of tasks; ValueError if it is not one of images."""
        images: Any = getattr(task_distribution, "images", None)
        require(images is not None, "task_distribution", task_distribution, "one of images, such as ImageEpisodes")
        return cls(images, size)

    @property
    def ways(self) -> int:
        """Number of training classes."""
        return len(split_of(self._classes, "train"))

    def sample(self, num_tasks: int, split: str, rng: np.random.Generator) -> FewShotTasks:
        """Draw tasks: inputs (M, size, H, W, C) from 0 to 1, targets (M, size)."""
        images = split_of(self._classes, split)
        classes = rng.integers(len(images), size=(num_tasks, self.size))
        examples = rng.integers(images.examples_of(classes), size=classes.shape)
        inputs = images.drawn(classes, examples)
        return _divided(inputs, torch.from_numpy(classes).to(inputs.device), 0)


def draw_distinct(rng: np.random.Generator, rows: int, total: int | np.ndarray, wanted: int) -> np.ndarray:
    """Draw for each row `wanted` distinct numbers below `total`, in random order: (rows, wanted).

    Args:
        rng: the generator.
        rows: how many.
        total: of all rows, or of each, (rows,); at least `wanted`.
        wanted: numbers of a row.
    """
    keys = rng.random((rows, int(np.max(total))), np.float32)
    if isinstance(total, np.ndarray):
        keys[np.arange(keys.shape[1]) >= total[:, None]] = np.inf
    found = np.argpartition(keys, wanted - 1, axis=1)[:, :wanted]
    order = np.take_along_axis(keys, found, axis=1).argsort(axis=1)  # argpartition's own order depends on the numbers
    return np.take_along_axis(found, order, axis=1)


def with_rotations(images: Tensor) -> Tensor:
    """Rotations by 0, 90, 180 and 270 degrees as classes of their own: (C, E, H, W, ...) to (4 C, E, H, W, ...)."""
    return torch.cat([torch.rot90(images, quarter, (2, 3)) for quarter in range(4)])


def split_classes(classes: int, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Deal class numbers to splits at random, each class to one split at most."""
    if sum(sizes.values()) > classes:
        raise ValueError(f"splits of {sum(sizes.values())} classes; allowed: at most the {classes} there are")
    ends = np.cumsum(list(sizes.values()))
    return dict(zip(sizes, np.split(rng.permutation(classes)[: ends[-1]], ends[:-1]), strict=True))


def _divided(inputs: Tensor, targets: Tensor, shots: int) -> FewShotTasks:
    support = Examples(inputs[:, :shots], targets[:, :shots])
    return FewShotTasks(support, Examples(inputs[:, shots:], targets[:, shots:]))
