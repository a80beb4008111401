"""Functions to be minimised, as few-shot tasks: the quadratics of Andrychowicz et al. (2016)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metarl.core.validation import require_whole
from metarl.few_shot.criteria import Criterion, squared_error
from metarl.few_shot.tasks import Examples, FewShotTasks


@dataclass(frozen=True)
class Quadratics:
    """The functions f(x) = |W x - y|^2 with elements of W and y from N(0, 1), as tasks of a linear module.

    The rows of W are the inputs of `nn.Linear(size, 1, bias=False)` and y their targets; the query examples are the
    support examples.

    Attributes:
        size: rows and columns of W.
    """

    size: int = 10

    def __post_init__(self) -> None:
        require_whole("size", self.size)

    def sample(self, num_tasks: int, split: str, rng: np.random.Generator) -> FewShotTasks:
        """Draw functions: inputs (M, size, size) and targets (M, size, 1)."""
        drawn = torch.from_numpy(rng.standard_normal((num_tasks, self.size, self.size + 1))).float()
        examples = Examples(drawn[:, :, :-1].contiguous(), drawn[:, :, -1:].contiguous())
        return FewShotTasks(examples, examples)


def summed_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of squared errors of each task, (M,), which is f."""
    return squared_error(outputs, targets) * targets[0].numel()


# The metric is f over the number of rows, which the paper's figures show; the published curves start at about 1.
QUADRATIC = Criterion("mse", summed_squares, squared_error, higher_is_better=False)
