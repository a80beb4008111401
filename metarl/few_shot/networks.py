"""Networks of supervised few-shot learning (Finn et al. 2017, section 5.1 and 5.2, and their code).

Images are (N, H, W, C), with values from 0 to 1. Any other `torch.nn.Module` may be learned as well; these are written
so that they can be differentiated twice, fast, with parameters that differ from task to task.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILON = 1e-5


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
        self.seen: list[tuple[Tensor, Tensor]] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise inputs (..., features)."""
        rows = inputs.flatten(0, -2)
        if self.seen is not None:
            self.seen.append((rows.mean(dim=0), rows.var(dim=0)))
        if self.mean is not None and self.variance is not None:
            normal = (rows - self.mean) * (self.variance + _EPSILON).rsqrt()
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
        return rows @ (weight * (variance + _EPSILON).rsqrt()) + self.shift


@torch.no_grad()
def batch_statistics(module: nn.Module, calls: Iterable[Callable[[], object]]) -> dict[str, Tensor]:
    """Mean and variance that a module's batch norms see in some calls, averaged, by the names of their buffers."""
    norms = {name: norm for name, norm in module.named_modules() if isinstance(norm, BatchNorm)}
    try:
        for norm in norms.values():
            norm.seen = []
        for call in calls:
            call()
        return {
            f"{name}.{which}": torch.stack(values).mean(dim=0)
            for name, norm in norms.items()
            for which, values in zip(("mean", "variance"), zip(*norm.seen or (), strict=True), strict=True)
        }
    finally:
        for norm in norms.values():
            norm.seen = None


class Convolution(nn.Module):
    """A 3x3 convolution with a margin of one pixel of zeros, without bias, as a product of matrices.

    Faster than torch's own where every task has its own weights, and its second derivatives are products of matrices
    too.

    Args:
        channels: C, of the input.
        filters: of the output.
        stride: of the output's pixels, in pixels of the input.
    """

    def __init__(self, channels: int, filters: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(9 * channels, filters))  # rows: (row, column, channel)
        bound = (6 / (9 * channels + 9 * filters)) ** 0.5  # as Glorot and Bengio 2010
        nn.init.uniform_(self.weight, -bound, bound)

    def patches(self, images: Tensor) -> Tensor:
        """The 3x3 neighbourhoods of pixels, zeros beyond the edge: (N, H, W, C) to (N, H', W', 9 C)."""
        count, height, width, channels = images.shape
        found = _Gathered.apply(images.reshape(-1, channels), height, width, self.stride, False)
        return found.view(count, _steps(height, self.stride), _steps(width, self.stride), 9 * channels)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, H, W, C) to (N, H', W', filters)."""
        patches = self.patches(images)
        return (patches.flatten(0, -2) @ self.weight).view(*patches.shape[:-1], -1)


class ConvBlock(nn.Module):
    """Convolution, batch norm, ReLU, and 2x2 max pooling where the convolution has no stride."""

    def __init__(self, channels: int, filters: int, stride: int):
        super().__init__()
        self.convolution = Convolution(channels, filters, stride)
        self.norm = BatchNorm(filters)
        self.pooled = stride == 1

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, H, W, C) to about half of the height and width."""
        weight = self.convolution.weight
        if weight.shape[0] < weight.shape[1]:
            patches = self.convolution.patches(images)
            normal = self.norm.of_product(patches.flatten(0, -2), weight).view(*patches.shape[:-1], -1)
        else:
            normal = self.norm(self.convolution(images))
        activations = F.relu(normal)
        if not self.pooled:
            return activations
        return F.max_pool2d(activations.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class ConvNet(nn.Module):
    """Four convolution blocks and a linear layer.

    Strided, the last block's pixels are averaged (the paper's Omniglot network with 64 filters); pooled, they are
    joined (MiniImagenet, 32 filters).

    Args:
        size: (H, W, C) of the images.
        ways: number of classes.
        filters: of each block.
        strided: whether blocks have stride 2 or max pooling.
    """

    def __init__(self, size: Sequence[int], ways: int, filters: int = 64, strided: bool = True):
        super().__init__()
        height, width, channels = size
        self.averaged = strided
        self.blocks = nn.Sequential(
            *(ConvBlock(channels if i == 0 else filters, filters, 2 if strided else 1) for i in range(4))
        )
        pixels = 1 if strided else (height // 16) * (width // 16)
        self.head = _glorot(nn.Linear(pixels * filters, ways))

    def features(self, images: Tensor) -> Tensor:
        """What the linear layer sees: images (N, H, W, C) to (N, features)."""
        blocks = self.blocks(images)
        return blocks.mean(dim=(1, 2)) if self.averaged else blocks.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, H, W, C) to logits (N, ways)."""
        return self.head(self.features(images))


class MLP(nn.Module):
    """Linear layers with ReLU between them; 1-40-40-1 for sine curves, 784-256-128-64-64-ways for images.

    Args:
        sizes: widths, the input's first; inputs with several axes are flattened.
        normalised: batch norm before each ReLU.
    """

    def __init__(self, sizes: Sequence[int], normalised: bool = False):
        super().__init__()
        *hidden, last = [_glorot(nn.Linear(a, b)) for a, b in pairwise(sizes)]
        blocks = [
            nn.Sequential(layer, BatchNorm(layer.out_features) if normalised else nn.Identity(), nn.ReLU())
            for layer in hidden
        ]
        self.blocks, self.head = nn.Sequential(*blocks), last

    def features(self, inputs: Tensor) -> Tensor:
        """What the last layer sees: inputs (N, ...) to (N, features)."""
        return self.blocks(inputs.flatten(1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, ...) to outputs (N, last size)."""
        return self.head(self.features(inputs))


def _glorot(layer: nn.Linear) -> nn.Linear:
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class _Normalised(torch.autograd.Function):
    """x (..., N, F) to mean 0 and variance 1 over N, with r = 1 / sqrt(variance + epsilon), which has no gradient."""

    @staticmethod
    def forward(inputs: Tensor) -> tuple[Tensor, Tensor]:
        centred = inputs - inputs.mean(dim=-2, keepdim=True)
        scale = (centred.square().mean(dim=-2, keepdim=True) + _EPSILON).rsqrt()
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


class _Gathered(torch.autograd.Function):
    """The patches of pixels (..., N H W, C), or the transpose: to each pixel the sum of what was made from it. Linear.

    A sum over bags of rows is torch's fastest way of both, several times faster than strided copies.
    """

    @staticmethod
    def forward(rows: Tensor, height: int, width: int, stride: int, transposed: bool) -> Tensor:
        *lead, _, channels = rows.shape
        entries = 9 * _steps(height, stride) * _steps(width, stride) if transposed else height * width
        images = rows.shape[:-1].numel() // entries
        table = _tables(images, height, width, stride, rows.device)[transposed]
        found = F.embedding_bag(table[0], rows.reshape(-1, channels), table[1], mode="sum")
        return found.view(*lead, -1, channels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int, int, bool], output: Tensor) -> None:
        _, *ctx.size, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _Gathered.apply(gradient, *ctx.size, not ctx.transposed), None, None, None, None

    @staticmethod
    def vmap(info: Any, axes: tuple[int, ...], rows: Tensor, *arguments: Any) -> tuple[Tensor, int]:
        return _Gathered.apply(rows.movedim(axes[0], 0), *arguments), 0


@lru_cache(maxsize=64)
def _tables(
    images: int, height: int, width: int, stride: int, device: torch.device
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The pixels of each patch entry (one or none) and the entries of each pixel: indices, and where bags begin."""
    rows, columns = np.arange(_steps(height, stride)) * stride, np.arange(_steps(width, stride)) * stride
    around = np.arange(-1, 2)
    image, row, column, i, j = np.ix_(np.arange(images), rows, columns, around, around)
    row, column = row + i, column + j
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (image >= 0)
    pixels = ((image * height + row) * width + column)[inside]
    entries = np.flatnonzero(inside)[np.argsort(pixels, kind="stable")]

    def table(indices: np.ndarray, sizes: np.ndarray) -> tuple[Tensor, Tensor]:
        begins = np.cumsum(sizes) - sizes
        return (
            torch.from_numpy(indices.astype(np.int32)).to(device),
            torch.from_numpy(begins.astype(np.int32)).to(device),
        )

    return table(pixels, inside.ravel()), table(entries, np.bincount(pixels, minlength=images * height * width))


def _steps(size: int, stride: int) -> int:
    return (size - 1) // stride + 1
