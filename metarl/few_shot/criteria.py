"""Criteria of supervised learning: the loss that is minimised, and the metric that is reported.

Shapes: M tasks, N examples of each; a criterion gives one number per task, (M,).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import CellType, FunctionType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from metarl.core.validation import require_positive


@dataclass(frozen=True)
class Criterion:
    """How outputs are judged; `loss` and `metric` map outputs and targets (M, N, ...) to one number per task, (M,).

    Attributes:
        name: of the metric.
        loss: what is minimised, a mean over the N examples.
        metric: what evaluations report; no gradient is taken of it.
        higher_is_better: whether a larger metric is a better one.
        noise_std: standard deviation of the targets about the outputs, for methods and metrics that take targets to be
            normal; None where nothing is known of it.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool = True
    noise_std: float | None = None

    def __post_init__(self) -> None:
        if self.noise_std is not None:
            require_positive("noise_std", self.noise_std)

    def __call__(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and metric of each task, (M,) both; the metric has no graph."""
        with torch.no_grad():
            metric = self.metric(outputs, targets)
        return self.loss(outputs, targets), metric

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy what the functions hold, too, so that later changes of it have no effect on the copy."""
        loss, metric = (_own_function(function, memo) for function in (self.loss, self.metric))
        return replace(self, loss=loss, metric=metric)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of each task, (M,); ValueError where outputs and targets differ in shape."""
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs {tuple(outputs.shape)} for targets {tuple(targets.shape)}, which must be alike")
    return (outputs - targets).square().flatten(1).mean(dim=1)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (M, N, ways) and class numbers (M, N) for each task, (M,).

    Deviation: the code of Finn et al. (2017) divides the sum over a task by K alone, so its inner step sizes count N
    times as much as here.
    """
    losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(dim=1)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of examples whose largest logit is that of their class, (M,)."""
    return (outputs.argmax(dim=2) == targets).to(outputs.dtype).mean(dim=1)


def nearest_neighbour(support: Tensor, targets: Tensor, query: Tensor) -> Tensor:
    """Return the class of the support example with the nearest features, (M, Q).

    Args:
        support: features (M, N, F).
        targets: their class numbers (M, N).
        query: features (M, Q, F).
    """
    return targets.gather(1, torch.cdist(query, support).argmin(dim=2))


def _own_function(function: Callable, memo: dict[int, Any]) -> Callable:
    """A copy of a function, with copies of what it closes over, which `copy.deepcopy` would share."""
    if not isinstance(function, FunctionType) or not function.__closure__:
        return copy.deepcopy(function, memo)
    cells = tuple(CellType(copy.deepcopy(cell.cell_contents, memo)) for cell in function.__closure__)
    own = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    own.__kwdefaults__ = function.__kwdefaults__
    return own


REGRESSION = Criterion("mse", squared_error, squared_error, higher_is_better=False)
CLASSIFICATION = Criterion("accuracy", cross_entropy, accuracy)
