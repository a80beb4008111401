"""Batch norm with the statistics of the batch at hand, written so that it is fast to differentiate twice."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

EPSILON = 1e-5


@dataclass(frozen=True)
class Moments:
    """Statistics of a batch of rows, of each feature (F,).

    Attributes:
        mean: over the rows.
        variance: the mean of the squared distances from it, by which the batch itself is normalised.
        unbiased: that variance times n / (n - 1), which estimates that of all rows there could be.
    """

    mean: Tensor
    variance: Tensor
    unbiased: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Return those of rows (N, F)."""
        variance = rows.var(dim=0, correction=0)
        return cls(rows.mean(dim=0), variance, rows.var(dim=0) if len(rows) > 1 else variance)


class BatchNorm(nn.Module):
    """y = (x - mean) / sqrt(variance + 1e-5) + shift, by default with the statistics of the batch at hand.

    So a query image's class depends on the others in its batch (transductive), in training and test, as in the
    paper's code. There is a shift but no scale, as there. Where the buffers `mean` and `variance` are set, they are
    used instead; `batch_statistics` finds their values.

    Args:
        features: the size of the last axis; all other axes are averaged over.
    """

    mean: Tensor | None
    variance: Tensor | None

    def __init__(self, features: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", None)
        self.register_buffer("variance", None)
        self.seen: list[Moments] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise inputs (..., features)."""
        rows = inputs.flatten(0, -2)
        if self.seen is not None:
            self.seen.append(Moments.of(rows))
        if self.mean is not None and self.variance is not None:
            normal = (rows - self.mean) * (self.variance + EPSILON).rsqrt()
        else:
            normal, _ = _Normalised.apply(rows)
        return (normal + self.shift).view_as(inputs)

    def of_product(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Normalise rows (N, K) @ weight (K, features) where K is small: a scaled weight does it, in one pass less.

        The variance of a feature w is w' C w, with C the covariance matrix of the rows.
        """
        if self.mean is not None or self.seen is not None:
            return self(rows @ weight)
        rows = rows - rows.mean(dim=0)
        variance = (weight * (rows.mT @ rows @ weight)).sum(dim=0) / len(rows)
        return rows @ (weight * (variance + EPSILON).rsqrt()) + self.shift


def batch_norms(module: nn.Module) -> dict[str, BatchNorm]:
    """Return the batch norms in a module, by their names in it."""
    return {name: norm for name, norm in module.named_modules() if isinstance(norm, BatchNorm)}


@contextmanager
def observed(module: nn.Module) -> Iterator[dict[str, list[Moments]]]:
    """Within the body, note the moments that each batch norm of a module sees, a list by the name of the norm."""
    norms = batch_norms(module)
    seen: dict[str, list[Moments]] = {}
    try:
        for name, norm in norms.items():
            norm.seen = seen[name] = []
        yield seen
    finally:
        for norm in norms.values():
            norm.seen = None


@torch.no_grad()
def batch_statistics(module: nn.Module, calls: Iterable[Callable[[], object]]) -> dict[str, Tensor]:
    """Mean and variance that a module's batch norms see in some calls, averaged, by the names of their buffers.

    Batch norms that are not called have none.
    """
    with observed(module) as seen:
        for call in calls:
            call()
    found = {}
    for name, moments in seen.items():
        if not moments:
            continue
        found[f"{name}.mean"] = torch.stack([of.mean for of in moments]).mean(dim=0)
        found[f"{name}.variance"] = torch.stack([of.unbiased for of in moments]).mean(dim=0)
    return found


class _Normalised(torch.autograd.Function):
    """x (..., N, F) to mean 0 and variance 1 over N, with r = 1 / sqrt(variance + epsilon), which has no gradient."""

    @staticmethod
    def forward(inputs: Tensor) -> tuple[Tensor, Tensor]:
        centred = inputs - inputs.mean(dim=-2, keepdim=True)
        scale = (centred.square().mean(dim=-2, keepdim=True) + EPSILON).rsqrt()
        return centred.mul_(scale), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        found, _, _ = _NormalisedGradient.apply(gradient, *ctx.saved_tensors)
        return found

    @staticmethod
    def vmap(info: Any, axes: tuple[int], inputs: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return _Normalised.apply(inputs.movedim(axes[0], 0)), (0, 0)


class _NormalisedGradient(torch.autograd.Function):
    """r (g - mean g - y mean(g y)), for g the gradient in the outputs y of `_Normalised`; with the two means."""

    @staticmethod
    def forward(gradient: Tensor, inputs: Tensor, normal: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, along = gradient.mean(dim=-2, keepdim=True), (gradient * normal).mean(dim=-2, keepdim=True)
        return (gradient - mean).sub_(normal * along).mul_(scale), mean, along

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        gradient, _, normal, scale = inputs
        ctx.save_for_backward(gradient, normal, scale, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None]:
        g, y, scale, mean_g, g_along = ctx.saved_tensors
        v_found, mean_v, v_along = _NormalisedGradient.forward(v, y, y, scale)
        rest = (v * g).mean(dim=-2, keepdim=True) - mean_v * mean_g - 3 * g_along * v_along
        inner = (v - mean_v).mul_(g_along).addcmul_(g - mean_g, v_along).addcmul_(y, rest)
        return v_found, inner.mul_(-(scale**2)), None, None

    @staticmethod
    def vmap(info: Any, axes: tuple[int | None, ...], *inputs: Tensor) -> Any:
        moved = [t if axis is None else t.movedim(axis, 0) for t, axis in zip(inputs, axes, strict=True)]
        return _NormalisedGradient.apply(*moved), (0, 0, 0)
