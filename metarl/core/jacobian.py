"""Products with a Jacobian in both directions, from graphs that are built once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

LinearMap = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class Jacobian:
    """The Jacobian J = d outputs / d inputs as a linear map.

    J' u is one backward pass. J v is the derivative with respect to u of J' u, which is linear in u. So no forward-mode
    rules are needed, and any module works that can be differentiated twice. Both graphs are built once and kept.

    Args:
        outputs: tensors with a graph.
        inputs: tensors that they depend on.
    """

    def __init__(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]):
        self._outputs, self._inputs = list(outputs), list(inputs)
        self._cotangents = [torch.zeros_like(output, requires_grad=True) for output in outputs]
        self._pullback = torch.autograd.grad(
            self._outputs, self._inputs, self._cotangents, create_graph=True, materialize_grads=True
        )

    def product(self, tangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return J v, shaped as the outputs, for v shaped as the inputs."""
        return weighted_gradient(self._pullback, self._cotangents, tangents)

    def transposed_product(self, cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return J' u, shaped as the inputs, for u shaped as the outputs."""
        return weighted_gradient(self._outputs, self._inputs, cotangents)


class Symmetric(Function):
    """The product A v with a symmetric matrix A, of which only products are known: `Symmetric.apply(product, *v)`."""

    @staticmethod
    def forward(ctx: Any, product: LinearMap, *vectors: Tensor) -> tuple[Tensor, ...]:
        """Return A v, shaped as v."""
        ctx.product = product
        return tuple(product(vectors))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Return A u, as A is symmetric."""
        return None, *Symmetric.apply(ctx.product, *cotangents)


class Linearised(Function):
    """Given values whose derivative in x is a symmetric matrix A: `Linearised.apply(product, values, *x)`.

    The values are not computed from x; only their derivative A, of which only products are known, belongs to it.
    """

    @staticmethod
    def forward(ctx: Any, product: LinearMap, values: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the values as they are."""
        ctx.product = product
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Return A u."""
        return None, None, *Symmetric.apply(ctx.product, *cotangents)


def weighted_gradient(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the gradient of sum(outputs * weights) in the inputs, 0 where they play no part; the graph is kept."""
    used = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    if not used:
        return tuple(torch.zeros_like(value) for value in inputs)
    values, directions = zip(*used, strict=True)
    return torch.autograd.grad(values, inputs, directions, retain_graph=True, materialize_grads=True)
