"""Trust-region optimisation of a function of one flat vector. Nothing here knows about policies or tasks."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_LONGEST = 10.0  # times the model's own length; backtracking gets from there below that length again

Product = Callable[[Tensor], Tensor]


def conjugate_gradient(
    product: Product, b: Tensor, iterations: int = 10, tolerance: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """Solve A x = b approximately for a symmetric positive definite A, starting from x = 0 (Hestenes, Stiefel 1952).

    Once the squared residual is below `tolerance` the solution stays as it is; this is decided on the device, so no
    iteration waits for the host.

    Args:
        product: v -> A v.
        b: (n,).
        iterations: number of products.
        tolerance: on the squared norm of the residual.

    Returns:
        x and the residual b - A x, both (n,).
    """
    x = torch.zeros_like(b)
    residual = b.clone()
    direction = b.clone()
    squared = _dot(residual, residual)
    for _ in range(iterations):
        image = product(direction)
        step = torch.where(squared > tolerance, squared / _dot(direction, image), 0)
        x = x + step * direction
        residual = residual - step * image
        previous, squared = squared, _dot(residual, residual)
        direction = residual + torch.where(previous > tolerance, squared / previous, 0) * direction
    return x, residual


@dataclass(frozen=True)
class TrustRegionOutcome:
    """What a trust-region step did.

    Attributes:
        status: `accepted`; `rejected`, when no step length improved the loss within the constraint; or `stationary`,
            when the gradient or the curvature along the step vanishes. Only `accepted` changes the vector.
        loss_before, loss_after: the minimised function; equal unless accepted.
        constraint: at the vector returned; 0 unless accepted.
        line_search_steps: lengths tried.
        gradient_norm: Euclidean.
    """

    status: str
    loss_before: float
    loss_after: float
    constraint: float
    line_search_steps: int
    gradient_norm: float


@dataclass(frozen=True)
class TrustRegion:
    """Minimise a loss to first order, within a bound on a constraint to second order (Schulman et al. 2015).

    The direction solves (A + damping I) x = gradient, A being the Hessian of the constraint. The constraint is then
    measured where the quadratic model of A has it equal to the bound; taken as quadratic through that measurement it
    gives the first length, which is shortened until the true loss falls and the true constraint holds. Deviation: TRPO
    starts from the model's own length, which is too short where A is known from a part of the samples: the noise of
    a curvature inside a product adds to A.

    Attributes:
        bound: the most the constraint may be.
        damping: added to the diagonal.
        iterations: of conjugate gradient.
        precision: residual, relative to the gradient, at which conjugate gradient ends. What is left below it is
            rounding, or where A knows no curvature; divided by the damping it would rule the direction.
        aim: share of the bound that the first length is to reach, as the constraint is not quite quadratic.
        backtrack: factor between two lengths.
        attempts: lengths tried.
    """

    bound: float = 0.01
    damping: float = 1e-5
    iterations: int = 10
    precision: float = 0.01
    aim: float = 0.95
    backtrack: float = 0.8
    attempts: int = 15

    def step(
        self,
        vector: Tensor,
        loss: Tensor,
        gradient: Tensor,
        product: Product,
        evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, TrustRegionOutcome]:
        """Take one step.

        Args:
            vector: (n,).
            loss, gradient: at the vector, () and (n,).
            product: v -> A v, A the Hessian of the constraint at the vector.
            evaluate: vector -> (loss, constraint).

        Returns:
            the new vector, which is `vector` itself unless the step was accepted, and what happened.
        """
        # the direction in which the quadratic model of the constraint allows the longest way down
        before, norm = loss.item(), gradient.norm().item()
        direction, residual = conjugate_gradient(
            lambda v: product(v) + self.damping * v, gradient, self.iterations, (self.precision * norm) ** 2
        )
        curvature = _dot(direction, gradient - residual).item()
        if not math.isfinite(curvature):
            raise ArithmeticError("a product with the Hessian of the constraint is not finite")
        if norm == 0 or not curvature > 0:
            return vector, TrustRegionOutcome("stationary", before, before, 0.0, 0, norm)
        # the first length: where the measured constraint, taken as quadratic, nearly reaches the bound
        full_step = (2 * self.bound / curvature) ** 0.5 * direction
        measured = evaluate(vector - full_step)[1].item()
        if 0 < measured < math.inf:
            full_step *= min(_LONGEST, (self.aim * self.bound / measured) ** 0.5)
        # shorter and shorter steps, until the loss falls and the constraint holds
        for attempt in range(self.attempts):
            candidate = vector - self.backtrack**attempt * full_step
            after, constraint = (value.item() for value in evaluate(candidate))
            if after < before and constraint <= self.bound:
                outcome = TrustRegionOutcome("accepted", before, after, constraint, attempt + 1, norm)
                return candidate, outcome
        if math.isnan(constraint):
            raise ArithmeticError("the constraint is not a number, however short the step")
        return vector, TrustRegionOutcome("rejected", before, before, 0.0, self.attempts, norm)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The scalar product, summed in float64: so the number of threads that sum does not show in the result."""
    return (a.double() @ b.double()).to(a.dtype)
