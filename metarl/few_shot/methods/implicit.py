"""iMAML (Rajeswaran et al. 2019): the meta-gradient of a regularised inner problem, without the path to its solution.

    phi*(theta) = argmin_phi L_support(phi) + lambda / 2 |phi - theta|^2
    d phi* / d theta = (I + H / lambda)^-1,    H the Hessian of L_support at phi*

The meta-gradient solves a linear system by conjugate gradient, with products H v alone. What is kept of the inner loop
is its last parameters, so memory does not grow with the number of inner steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metarl.core.adaptation import inner_gradient
from metarl.core.jacobian import weighted_gradient
from metarl.core.parameters import Parameters
from metarl.core.settings import setting
from metarl.core.validation import require
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.tasks import Examples


@dataclass(frozen=True)
class IMAML(MAML):
    """MAML with a proximal term and an implicit meta-gradient (Rajeswaran et al. 2019).

        inner step   phi' = phi - alpha (dL_support / dphi + lambda (phi - theta))
        meta-gradient   x of (I + H / (lambda + damping)) x = dL_query / dphi_S, by conjugate gradient

    Without damping that is the paper's meta-gradient, which needs H / lambda > -1. Where ReLUs bend the loss more than
    that the system has negative curvature, conjugate gradient fails, and nothing is learned; the authors' code damps
    the system, too. It also takes its inner steps without the proximal term, and follows them by one step on that term
    alone; here every step has the term, as in the paper.

    Attributes:
        rule: gradient descent of all parameters; its `second_order` plays no part.
    """

    regularisation: float = setting(2.0, "strength of the proximal term, lambda", more_than=0, source="paper")
    cg_iterations: int = setting(5, "iterations of conjugate gradient", at_least=1, source="paper")
    damping: float = setting(
        10.0, "added to lambda in the system that the meta-gradient solves", at_least=0, source="authors' code"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.multi_step_iterations, "multi_step_iterations", self.multi_step_iterations, "0 with iMAML")
        theta = self.meta_parameters()
        shared = set(theta) - set(self.rule.adapted_names(self.rule.start(theta)))
        require(not shared, "rule", self.rule, f"one that adapts all parameters, also {', '.join(sorted(shared))}")

    def states(self, theta: Parameters, support: Examples, inner_steps: int) -> list[Parameters]:
        """Return phi_0 ... phi_S of the regularised problem."""
        states = [self.rule.start(theta)]
        for step in range(inner_steps):
            phi = {name: value.detach().requires_grad_() for name, value in states[-1].items()}
            with torch.enable_grad():
                gradients = inner_gradient(self._support_loss, phi, support, False)
            with torch.no_grad():
                pulled = {n: g + self.regularisation * (phi[n] - theta[n]) for n, g in gradients.items()}
                states.append(self.rule.update(theta, phi, pulled, step))
        return states

    def _path(self, theta: Parameters, support: Examples) -> list[Parameters]:
        """The start, in place of the steps in between, and phi_S, differentiably in theta."""
        values = _Solution.apply(self, support, tuple(theta), *theta.values())
        return [self.rule.start(theta)] * self.inner_steps + [dict(zip(theta, values, strict=True))]

    def curvature_product(self, phi: Parameters, support: Examples) -> Callable[[Tensor], Tensor]:
        """Return v -> v + H v / (lambda + damping) of each task, (M, n); the gradient's graph is built once."""
        with torch.enable_grad():
            point = {name: value.detach().requires_grad_() for name, value in phi.items()}
            gradient = list(inner_gradient(self._support_loss, point, support, True).values())
        values = list(point.values())

        def product(vector: Tensor) -> Tensor:
            image = flat_rows(weighted_gradient(gradient, values, row_pieces(vector, values)))
            return vector + image / (self.regularisation + self.damping)

        return product


class _Solution(Function):
    """phi_S as a function of theta whose derivative is that of the exact solution."""

    @staticmethod
    def forward(
        ctx: Any, method: IMAML, support: Examples, names: tuple[str, ...], *theta: Tensor
    ) -> tuple[Tensor, ...]:
        given = {name: value.detach() for name, value in zip(names, theta, strict=True)}
        phi = method.states(given, support, method.inner_steps)[-1]
        ctx.method, ctx.support, ctx.names = method, support, names
        ctx.save_for_backward(*phi.values())
        return tuple(phi[name].clone() for name in names)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        phi = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        product = ctx.method.curvature_product(phi, ctx.support)
        solved = conjugate_gradients(product, flat_rows(cotangents), ctx.method.cg_iterations)
        return None, None, None, *row_pieces(solved.detach(), ctx.saved_tensors)


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solve A_m x_m = b_m of M tasks, each by itself, from x = 0 (Hestenes and Stiefel 1952).

    Unlike `metarl.core.trust_region.conjugate_gradient` it has step lengths of each task's own. A task whose residual
    is 0 stays as it is.

    Args:
        product: maps vectors (M, n) to A v, with A symmetric and positive definite.
        b: (M, n).
        iterations: number of products.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    squared = (b * b).sum(dim=1, keepdim=True)
    for _ in range(iterations):
        image = product(direction)
        length = torch.where(squared > 0, squared / (direction * image).sum(dim=1, keepdim=True), 0)
        x, residual = x + length * direction, residual - length * image
        previous, squared = squared, (residual * residual).sum(dim=1, keepdim=True)
        direction = residual + torch.where(previous > 0, squared / previous, 0) * direction
    return x


def flat_rows(tensors: Any) -> Tensor:
    """Tensors (M, ...) as one (M, n)."""
    return torch.cat([value.reshape(len(value), -1) for value in tensors], dim=1)


def row_pieces(rows: Tensor, like: Any) -> list[Tensor]:
    """Cut (M, n) into tensors shaped as those in `like`; the inverse of `flat_rows`."""
    pieces = rows.split([value[0].numel() for value in like], dim=1)
    return [piece.reshape(value.shape) for piece, value in zip(pieces, like, strict=True)]
