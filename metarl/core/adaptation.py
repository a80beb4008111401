"""The inner loop: differentiable steps from meta-parameters theta to adapted parameters phi, for all tasks at once.

Nothing here knows what is learned: a loss maps parameters with a leading axis of M tasks, and the data of these
tasks, to M numbers. Theta too comes with a row for each task, all equal, so that derivatives in it are each task's own:
they do not depend on which tasks are handled together, and the caller adds them up as exactly as it likes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from metarl.core.jacobian import Linearised, weighted_gradient
from metarl.core.parameters import Parameters
from metarl.core.rules import AdaptationRule

Data = TypeVar("Data")
Loss = Callable[[Parameters, Data], Tensor]


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
