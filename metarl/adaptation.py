"""The inner loop: differentiable steps from meta-parameters theta to adapted parameters phi, for all tasks at once.

Nothing here knows what is learned: a loss maps parameters with a leading axis of M tasks, and the data of these
tasks, to M numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from metarl.parameters import Parameters, expand_over_tasks

Data = TypeVar("Data")
Loss = Callable[[Parameters, Data], Tensor]


class AdaptationRule(Protocol):
    """How a task's parameters start from the meta-parameters, and what one inner step does to them.

    Attributes:
        steps: S, the number of inner steps in meta-training.
        second_order: whether the meta-gradient runs through the inner gradients.
    """

    @property
    def steps(self) -> int: ...

    @property
    def second_order(self) -> bool: ...

    def start(self, theta: Parameters, tasks: int) -> Parameters:
        """Parameters before the first step, with a leading axis of M tasks."""
        ...

    def update(self, theta: Parameters, phi: Parameters, gradients: Parameters, step: int) -> Parameters:
        """Parameters after inner step number `step`, counted from 0."""
        ...


@dataclass(frozen=True)
class GradientDescent:
    """phi' = phi - alpha_s * gradient (Finn et al. 2017).

    Attributes:
        step_size: alpha for the steps that training takes.
        steps: S, the inner steps of meta-training.
        second_order: False drops the inner Hessian from the meta-gradient (first-order MAML).
        later_factor: multiplies alpha at test time for every step after the S trained ones, and after the first;
            the paper's code halves.
    """

    step_size: float = 0.1
    steps: int = 1
    second_order: bool = True
    later_factor: float = 0.5

    def start(self, theta: Parameters, tasks: int) -> Parameters:
        """Every task starts at theta."""
        return expand_over_tasks(theta, tasks)

    def update(self, theta: Parameters, phi: Parameters, gradients: Parameters, step: int) -> Parameters:
        """One step downhill."""
        step_size = self.step_size * (1.0 if step < max(1, self.steps) else self.later_factor)
        return {name: value - step_size * gradients[name] for name, value in phi.items()}


def inner_gradient(loss: Loss[Data], phi: Parameters, data: Data, differentiable: bool) -> Parameters:
    """Gradient of each task's own loss in its own parameters; parameters that play no part get 0.

    Args:
        loss: maps (M, ...) parameters and data to (M,).
        phi: (M, ...) tensors that require gradients.
        data: of the same M tasks.
        differentiable: keep the graph, so that the result can be differentiated again.
    """
    total = loss(phi, data).sum()  # tasks share no parameter, so the gradient of the sum holds each task's own
    gradients = torch.autograd.grad(total, list(phi.values()), create_graph=differentiable, materialize_grads=True)
    return dict(zip(phi, gradients, strict=True))


def adapt_step(
    loss: Loss[Data], rule: AdaptationRule, theta: Parameters, phi: Parameters, data: Data, step: int
) -> tuple[Parameters, Tensor]:
    """Take one inner step for all tasks, without a graph.

    Returns:
        the parameters after it, and the Euclidean norm of each task's gradient, (M,).
    """
    leaves = {name: value.detach().requires_grad_() for name, value in phi.items()}
    gradients = inner_gradient(loss, leaves, data, differentiable=False)
    with torch.no_grad():
        squares = [gradient.flatten(1).square().sum(dim=1) for gradient in gradients.values()]
        return rule.update(theta, phi, gradients, step), torch.stack(squares).sum(dim=0).sqrt()


def adapt(
    loss: Loss[Data],
    rule: AdaptationRule,
    theta: Parameters,
    supports: Sequence[Data],
    tasks: int,
    anchors: Sequence[Parameters] | None = None,
) -> Parameters:
    """Take all inner steps, differentiably in theta.

    Args:
        loss: the inner loss.
        rule: the adaptation rule; its `second_order` decides whether the inner gradients stay in the graph.
        theta: meta-parameters that require gradients.
        supports: data of each inner step.
        tasks: M.
        anchors: the values that the parameters take after each step, replacing those computed here, while the
            derivatives remain those of the step computed here. So curvature may come from fewer samples than the
            adapted parameters themselves.

    Returns:
        adapted parameters, (M, ...).
    """
    phi = rule.start(theta, tasks)
    for step, data in enumerate(supports):
        if rule.second_order:
            gradients = inner_gradient(loss, phi, data, differentiable=True)
        else:
            leaves = {name: value.detach().requires_grad_() for name, value in phi.items()}
            gradients = inner_gradient(loss, leaves, data, differentiable=False)
        phi = rule.update(theta, phi, gradients, step)
        if anchors is not None:
            phi = {name: value + (anchors[step][name] - value).detach() for name, value in phi.items()}
    return phi
