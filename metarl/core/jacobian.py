"""Products with a Jacobian in both directions, from graphs that are built once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

LinearMap = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class Jacobian:
    """J = d outputs / d inputs, as a linear map.

    J' u is one backward pass. J v is the derivative of J' u, which is linear in u, with respect to u; no forward-mode
    rules are needed, so any module that can be differentiated twice will do. Both graphs are kept, so that many
    products at the same point cost only the products.
    """

    def __init__(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]):
        self._outputs, self._inputs = list(outputs), list(inputs)
        self._cotangents = [torch.zeros_like(output, requires_grad=True) for output in outputs]
        self._pullback = torch.autograd.grad(
            self._outputs, self._inputs, self._cotangents, create_graph=True, materialize_grads=True
        )

    def product(self, tangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """J v, shaped as the outputs, for v shaped as the inputs."""
        return weighted_gradient(self._pullback, self._cotangents, tangents)

    def transposed_product(self, cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """J' u, shaped as the inputs, for u shaped as the outputs."""
        return weighted_gradient(self._outputs, self._inputs, cotangents)


class Symmetric(Function):
    """A v for a symmetric matrix A that is known by its products: `Symmetric.apply(product, *v)`."""

    @staticmethod
    def forward(ctx: Any, product: LinearMap, *vectors: Tensor) -> tuple[Tensor, ...]:
        """A v."""
        ctx.product = product
        return tuple(product(vectors))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """A u."""
        return None, *Symmetric.apply(ctx.product, *cotangents)


class Linearised(Function):
    """Values whose derivative in x is a symmetric matrix: `Linearised.apply(product, values, *x)`."""

    @staticmethod
    def forward(ctx: Any, product: LinearMap, values: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        """The values."""
        ctx.product = product
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """A u."""
        return None, None, *Symmetric.apply(ctx.product, *cotangents)


def weighted_gradient(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Gradient of the sum of outputs times weights in the inputs, 0 where there is none; the graph stays."""
    used = [(output, weight) for output, weight in zip(outputs, weights, strict=True) if output.requires_grad]
    if not used:
        return tuple(torch.zeros_like(value) for value in inputs)
    values, directions = zip(*used, strict=True)
    return torch.autograd.grad(values, inputs, directions, retain_graph=True, materialize_grads=True)
