"""A 3x3 convolution as a product of matrices, for weights that differ from task to task.

Images are (N, H, W, C).
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
