"""The inner loop: differentiable steps from meta-parameters theta to adapted parameters phi, for all tasks at once.

Nothing here knows what is learned: a loss maps parameters with a leading axis of M tasks, and the data of these
tasks, to M numbers. Theta too comes with a row for each task, all equal, so that derivatives in it are each task's own:
they do not depend on which tasks are handled together, and the caller adds them up as exactly as it likes.
"""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from metarl.core.jacobian import Linearised, weighted_gradient
from metarl.core.parameters import Parameters
from metarl.core.validation import require, require_positive, require_whole

Data = TypeVar("Data")
Loss = Callable[[Parameters, Data], Tensor]


class AdaptationRule(Protocol):
    """Where a task's parameters start from the meta-parameters, and what one inner step does to them.

    Attributes:
        steps: S, the number of inner steps in meta-training.
        second_order: whether the meta-gradient runs through the inner gradients.
    """

    @property
    def steps(self) -> int: ...

    @property
    def second_order(self) -> bool: ...

    def meta_parameters(self, parameters: Parameters) -> Parameters:
        """Theta for a module's parameters: these, and whatever else the rule itself learns."""
        ...

    def adapted_names(self, phi: Parameters) -> list[str]:
        """Names of the parameters that inner steps change; the others are shared by all tasks."""
        ...

    def start(self, theta: Parameters) -> Parameters:
        """The module's parameters before the first step; like theta with a leading axis of M tasks."""
        ...

    def update(self, theta: Parameters, phi: Parameters, gradients: Parameters, step: int) -> Parameters:
        """Parameters after inner step number `step`, counted from 0, given the gradients of the adapted ones."""
        ...


@dataclass(frozen=True)
class GradientDescent:
    """phi' = phi - alpha_s * gradient (Finn et al. 2017).

    With `adapted` naming the last layer this is ANIL (Raghu et al. 2020): the rest of the network is shared and only
    meta-learned. With `adapted` naming a context vector that the module feeds to itself, and `from_zero`, it is CAVIA
    (Zintgraf et al. 2019); the context's entry in theta then has no effect and keeps its value.

    Attributes:
        step_size: alpha for the steps that training takes.
        steps: S, the inner steps of meta-training.
        second_order: False drops the inner Hessian from the meta-gradient (first-order MAML).
        later_factor: multiplies alpha at test time for every step after the S trained ones, and after the first;
            the paper's code halves.
        adapted: patterns, as of file names, of the parameters that inner steps change.
        from_zero: the adapted parameters of every task start at 0, not at theta.
    """

    step_size: float = 0.1
    steps: int = 1
    second_order: bool = True
    later_factor: float = 0.5
    adapted: tuple[str, ...] = ("*",)
    from_zero: bool = False

    def __post_init__(self) -> None:
        require_whole("steps", self.steps, at_least=0)
        require_positive("step_size", self.step_size)
        require_positive("later_factor", self.later_factor)
        require(not isinstance(self.adapted, str), "adapted", self.adapted, "a tuple of patterns")

    def meta_parameters(self, parameters: Parameters) -> Parameters:
        """The module's parameters alone; ValueError if a pattern of `adapted` fits none of them."""
        for pattern in self.adapted:
            if not fnmatch.filter(parameters, pattern):
                raise ValueError(f"adapted = {pattern!r} fits no parameter; allowed: {', '.join(parameters)}")
        return dict(parameters)

    def adapted_names(self, phi: Parameters) -> list[str]:
        """Those that fit a pattern of `adapted`."""
        return [name for name in phi if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.adapted)]

    def start(self, theta: Parameters) -> Parameters:
        """Every task starts at theta, or its adapted parameters at 0."""
        phi = dict(theta)
        if self.from_zero:
            phi |= {name: 0 * phi[name] for name in self.adapted_names(phi)}  # in the graph, with derivative 0
        return phi

    def update(self, theta: Parameters, phi: Parameters, gradients: Parameters, step: int) -> Parameters:
        """One step downhill."""
        factor = 1.0 if step < max(1, self.steps) else self.later_factor
        moved = {
            name: phi[name] - factor * self._step_size(theta, name, step) * gradient
            for name, gradient in gradients.items()
        }
        return {**phi, **moved}

    def _step_size(self, theta: Parameters, name: str, step: int) -> float | Tensor:
        return self.step_size


class _LearnedStepSizes(GradientDescent):
    """Gradient descent whose step sizes are meta-parameters `step_size.NAME`, one tensor per adapted parameter."""

    _prefix = "step_size."

    def meta_parameters(self, parameters: Parameters) -> Parameters:
        """The module's parameters, and the step sizes of the adapted ones, which all start at `step_size`."""
        theta = super().meta_parameters(parameters)
        if taken := [name for name in theta if name.startswith(self._prefix)]:
            raise ValueError(f"parameter {taken[0]!r} has the name of a step size; allowed: any other name")
        sizes = {self._prefix + n: self._initial_step_size(theta[n]) for n in self.adapted_names(theta)}
        return {**theta, **sizes}

    def start(self, theta: Parameters) -> Parameters:
        """As in plain gradient descent; the step sizes are no parameters of the module."""
        own = {name: value for name, value in theta.items() if not name.startswith(self._prefix)}
        return super().start(own)

    def _initial_step_size(self, parameter: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class MetaSGD(_LearnedStepSizes):
    """phi' = phi - alpha * gradient, alpha a learned tensor shaped as the parameter (Meta-SGD, Li et al. 2017).

    All steps share it. Its elements may become negative, as in the paper; they start at one value, where the paper
    draws them at random. Attributes as in `GradientDescent`; `step_size` is where alpha starts.
    """

    def _initial_step_size(self, parameter: Tensor) -> Tensor:
        return torch.full_like(parameter, self.step_size)

    def _step_size(self, theta: Parameters, name: str, step: int) -> Tensor:
        return theta[self._prefix + name]


@dataclass(frozen=True)
class LayerStepSizes(_LearnedStepSizes):
    """phi' = phi - alpha_s * gradient, alpha_s a learned number per tensor and step (MAML++, Antoniou et al. 2019).

    Steps after the S trained ones use the last step's times `later_factor`. Attributes as in `GradientDescent`;
    `step_size` is where all alpha_s start. The paper gives a layer's weight and bias one number; here each tensor has
    its own.
    """

    def _initial_step_size(self, parameter: Tensor) -> Tensor:
        return parameter.new_full((max(1, self.steps),), self.step_size)

    def _step_size(self, theta: Parameters, name: str, step: int) -> Tensor:
        sizes = theta[self._prefix + name][:, min(step, max(1, self.steps) - 1)]
        return sizes.view(-1, *[1] * (theta[name].ndim - 1))


def inner_gradient(
    loss: Loss[Data], phi: Parameters, data: Data, differentiable: bool, names: Sequence[str] | None = None
) -> Parameters:
    """Gradient of each task's own loss in its own parameters; parameters that play no part get 0.

    Args:
        loss: maps (M, ...) parameters and data to (M,).
        phi: (M, ...) tensors, those named requiring gradients.
        data: of the same M tasks.
        differentiable: keep the graph, so that the result can be differentiated again.
        names: of the parameters whose gradients are wanted; None takes all.
    """
    names = list(phi) if names is None else names
    total = loss(phi, data).sum()  # tasks share no parameter, so the gradient of the sum holds each task's own
    wanted = [phi[name] for name in names]
    gradients = torch.autograd.grad(total, wanted, create_graph=differentiable, materialize_grads=True)
    return dict(zip(names, gradients, strict=True))


def linearised_gradient(loss: Loss[Data], phi: Parameters, data: Data, names: Sequence[str]) -> Parameters:
    """As `inner_gradient`, with a derivative that is known by its products with vectors alone.

    The derivative is the Hessian H of each task's loss, so products with it and with its transpose are the same: one
    backward pass over the graph of the gradient, which is built once and serves them all.
    """
    point = {name: value.detach().requires_grad_() for name, value in phi.items()}
    gradient = list(inner_gradient(loss, point, data, True).values())
    product = partial(weighted_gradient, gradient, list(point.values()))
    linearised = Linearised.apply(product, [value.detach() for value in gradient], *phi.values())
    return {name: value for name, value in zip(phi, linearised, strict=True) if name in names}


def adapt_step(
    loss: Loss[Data], rule: AdaptationRule, theta: Parameters, phi: Parameters, data: Data, step: int
) -> tuple[Parameters, Tensor]:
    """Take one inner step for all tasks, without a graph; theta and phi are (M, ...).

    Returns:
        the parameters after it, and the Euclidean norm of each task's gradient in the adapted parameters, (M,).
    """
    gradients = _gradient_at_point(loss, rule, phi, data)
    with torch.no_grad():
        squares = [gradient.reshape(len(gradient), -1).square().sum(dim=1) for gradient in gradients.values()]
        return rule.update(theta, phi, gradients, step), torch.stack(squares).sum(dim=0).sqrt()


def adaptation_path(
    loss: Loss[Data],
    rule: AdaptationRule,
    theta: Parameters,
    supports: Sequence[Data],
    anchors: Sequence[Parameters] | None = None,
) -> list[Parameters]:
    """Take all inner steps, differentiably in theta.

    Args:
        loss: the inner loss.
        rule: the adaptation rule; its `second_order` decides whether the inner gradients stay in the graph.
        theta: meta-parameters (M, ...) that require gradients.
        supports: data of each inner step.
        anchors: the values that the parameters take after each step, replacing those computed here, while the
            derivatives remain those of the step computed here. So curvature may come from fewer samples than the
            adapted parameters themselves. The path may then be differentiated many times over, but in theta only
            once: see `linearised_gradient`.

    Returns:
        parameters phi_0 ... phi_S before the first step and after each, (M, ...).
    """
    path = [rule.start(theta)]
    for step, data in enumerate(supports):
        phi = path[-1]
        if rule.second_order and anchors is not None:
            gradients = linearised_gradient(loss, phi, data, rule.adapted_names(phi))
        elif rule.second_order:
            gradients = inner_gradient(loss, phi, data, True, rule.adapted_names(phi))
        else:
            gradients = _gradient_at_point(loss, rule, phi, data)
        phi = rule.update(theta, phi, gradients, step)
        if anchors is not None:
            phi = {name: value + (anchors[step][name] - value).detach() for name, value in phi.items()}
        path.append(phi)
    return path


def _gradient_at_point(loss: Loss[Data], rule: AdaptationRule, phi: Parameters, data: Data) -> Parameters:
    names = rule.adapted_names(phi)
    point = {name: value.detach() for name, value in phi.items()}
    point |= {name: point[name].requires_grad_() for name in names}
    return inner_gradient(loss, point, data, False, names)
