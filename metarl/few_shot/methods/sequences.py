"""Few-shot learning from sequences: examples in random order, each seen with the label of the one before.

A recurrent network reads a task's support examples one after the other, (x_1, -), (x_2, y_1), (x_3, y_2), ..., and says
at every one which class it is of, before it is told (Santoro et al. 2016, Hochreiter et al. 2001). So it must keep what
it saw until the label comes, and it is judged at every position: accuracy by instance is the accuracy at a class's
first, second, third, ... image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarl.core.parallel import own_copy
from metarl.core.parameters import Parameters
from metarl.core.validation import require
from metarl.few_shot.method import SharedMethod, State, first_rows
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks, ImageEpisodes


class ShuffledEpisodes(ImageEpisodes):
    """`ImageEpisodes` whose support images are in random order, another one in each task.

    Methods that read the support one after the other would otherwise know the classes from their order.
    """

    def sample(self, num_tasks: int, split: str, rng: np.random.Generator) -> FewShotTasks:
        """Draw tasks: inputs (M, N * K, H, W, C) from 0 to 1, targets (M, N * K); query images in the order of classes.

        Every task has classes of its own, numbered in random order, so that no label means the same in two tasks.
        """
        drawn = super().sample(num_tasks, split, rng)
        targets = drawn.support.targets
        order = rng.permuted(np.broadcast_to(np.arange(targets.shape[1]), targets.shape), axis=1)
        index, rows = (
            torch.from_numpy(order).to(targets.device),
            torch.arange(num_tasks, device=targets.device)[:, None],
        )
        return FewShotTasks(Examples(drawn.support.inputs[rows, index], targets[rows, index]), drawn.query)


def require_shuffled(task_distribution: FewShotDistribution) -> FewShotDistribution:
    """Return the distribution; ValueError for image episodes whose support is in the order of classes."""
    ordered = isinstance(task_distribution, ImageEpisodes) and not isinstance(task_distribution, ShuffledEpisodes)
    require(not ordered, "task_distribution", type(task_distribution).__name__, "ShuffledEpisodes, in random order")
    return task_distribution


@dataclass(frozen=True)
class SequenceClassifier(SharedMethod):
    """A recurrent network that learns a task by reading its examples, such as `MemoryNet` (MANN) or `LSTMNet`.

        o_t, s_t = module(x_t, y_{t-1}, s_{t-1}),    log P(y_t) = log softmax(o_t),    y_0 is a vector of zeros

    Training minimises the mean of -log P(y_t) over all positions of the support sequence, and its metric is the
    accuracy at all of them; training has no use for query examples. A query example is read as the next one of the
    sequence, from a copy of the state, so that none is remembered.

    All tasks go through the network together, and theta is one for all tasks.

    Attributes:
        module: from inputs (M, T, ...), previous labels one-hot (M, T, ways) and a state, or None for the first one, to
            logits (M, T, ways) and the next state, a dict of tensors (M, ...). Its attribute `ways` is the number of
            classes, which is fixed.
    """

    @property
    def ways(self) -> int:
        """Classes of a task."""
        return int(self.module.ways)  # type: ignore[arg-type]

    @property
    def reads_in_order(self) -> bool:
        """True: from first to last."""
        return True

    def tasks_per_chunk(self, support: Examples) -> int:
        """Return the number of all tasks, as every position is a step of its own, however few tasks take it."""
        return len(support.targets)

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return the distribution; ValueError if the order of its images would tell their classes."""
        return require_shuffled(task_distribution)

    def adapt(self, theta: Parameters, support: Examples) -> State:
        """Return the network's state after the support sequence, and the last label, one-hot (M, ways)."""
        _, memory = self._read(first_rows(theta), support)
        return {"memory": memory, "previous": self._one_hot(support.targets[:, -1])}

    def predict(self, theta: Parameters, state: State, inputs: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways), of every query example as the next one of its sequence."""
        count = inputs.shape[1]
        memory = {name: value.repeat_interleave(count, dim=0) for name, value in state["memory"].items()}
        previous = state["previous"].repeat_interleave(count, dim=0).unsqueeze(1).to(inputs.dtype)
        logits, _ = self._call(first_rows(theta), inputs.flatten(0, 1).unsqueeze(1), previous, memory)
        return logits.view(len(inputs), count, -1).log_softmax(dim=2)

    def loss(self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the positions of the support sequence, and the metric there, (M,) both."""
        log_probabilities, _ = self._read(first_rows(theta), tasks.support)
        return self.criterion(log_probabilities, tasks.support.targets)

    @torch.no_grad()
    def further_metrics(
        self, theta: Parameters, tasks: FewShotTasks, statistics: Parameters | None = None
    ) -> dict[str, Tensor]:
        """Return accuracy by instance on the support sequence: `instance_1` is that at the first image of a class."""
        log_probabilities, _ = self._read(first_rows(theta), tasks.support)
        right = log_probabilities.argmax(dim=2) == tasks.support.targets
        numbers = instance_numbers(tasks.support.targets)
        found = {}
        for number in range(int(numbers.max()) + 1):
            chosen = numbers == number
            found[f"instance_{number + 1}"] = (right & chosen).sum(dim=1).double() / chosen.sum(dim=1)
        return found

    def _read(self, theta: Parameters, examples: Examples) -> tuple[Tensor, State]:
        """Log-probabilities (M, T, ways) at every position, each before its label is told, and the state at the end."""
        labels = self._one_hot(examples.targets).to(examples.inputs.dtype)
        previous = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], dim=1)
        logits, memory = self._call(theta, examples.inputs, previous, None)
        return logits.log_softmax(dim=2), memory

    def _call(self, theta: Parameters, inputs: Tensor, previous: Tensor, memory: State | None) -> tuple[Tensor, State]:
        return functional_call(own_copy(self.module), theta, (inputs, previous, memory))

    def _one_hot(self, targets: Tensor) -> Tensor:
        if targets.is_floating_point() or (targets.numel() and int(targets.max()) >= self.ways):
            raise ValueError(f"targets of {targets.dtype} up to {targets.max()}; allowed: classes 0 to {self.ways - 1}")
        return F.one_hot(targets, self.ways)


def instance_numbers(targets: Tensor) -> Tensor:
    """Return how many examples of the same class come before each one in its sequence, (M, T) to (M, T)."""
    same = targets.unsqueeze(2) == targets.unsqueeze(1)
    return same.tril(diagonal=-1).sum(dim=2)
