"""Products with a Jacobian in both directions, from graphs that are built once."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
        used = [(pull, tangent) for pull, tangent in zip(self._pullback, tangents, strict=True) if pull.requires_grad]
        pulls, directions = zip(*used, strict=True)
        return torch.autograd.grad(pulls, self._cotangents, directions, retain_graph=True, materialize_grads=True)

    def transposed_product(self, cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """J' u, shaped as the inputs, for u shaped as the outputs."""
        return torch.autograd.grad(
            self._outputs, self._inputs, list(cotangents), retain_graph=True, materialize_grads=True
        )
