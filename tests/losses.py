"""Losses of two tasks, simple enough to know the answer; float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metarl.core.adaptation import Loss, adaptation_path
from metarl.core.parameters import Parameters, expand_over_tasks
from metarl.core.rules import AdaptationRule

CURVATURE = torch.tensor([[1.0, 3.0], [2.0, 5.0]], dtype=torch.float64)  # (M, n)

TARGETS = torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=torch.float64)

THETA = {"x": torch.tensor([0.3, 0.7], dtype=torch.float64)}

ROWS = expand_over_tasks(THETA, 2)


def quadratic(phi: Parameters, targets: Tensor) -> Tensor:
    """sum_i c_i (x_i - target_i)^2 / 2 for each task."""
    return (0.5 * CURVATURE[: len(targets)] * (phi["x"] - targets).square()).sum(dim=1)


def quartic(phi: Parameters, targets: Tensor) -> Tensor:
    """sum_i (x_i - target_i)^4 for each task."""
    return (phi["x"] - targets).pow(4).sum(dim=1)


def coupled(phi: Parameters, targets: Tensor) -> Tensor:
    """A loss in which x and y meet, so that no Hessian is block diagonal."""
    return quartic(phi, targets) + (phi["x"].square() * phi["y"]).sum(dim=1) + phi["y"].pow(4).sum(dim=1)


def leaves(theta: Parameters) -> Parameters:
    """Copies that require gradients."""
    return {name: value.clone().requires_grad_() for name, value in theta.items()}


def adapt(
    loss: Loss[Tensor],
    rule: AdaptationRule,
    theta: Parameters,
    supports: Sequence[Tensor],
    num_tasks: int,
    anchors: Sequence[Parameters] | None = None,
) -> Parameters:
    """The parameters of so many tasks after all inner steps from theta, which has no axis of tasks."""
    return adaptation_path(loss, rule, expand_over_tasks(theta, num_tasks), supports, anchors)[-1]
