"""Networks of supervised few-shot learning (Finn et al. 2017, section 5.1 and 5.2, and their code).

Images are (N, H, W, C), with values from 0 to 1. Any other `torch.nn.Module` may be learned as well; these are written
so that they can be differentiated twice, fast, with parameters that differ from task to task.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.Module):
    """y = (x - mean) / sqrt(variance + 1e-5) + shift, with the statistics of the batch at hand, always.

    So a query image's class depends on the others in its batch (transductive), in training and test, as in the
    paper's code. There is a shift but no scale, as there.

    Args:
        features: the size of the last axis; all other axes are averaged over.
    """

    def __init__(self, features: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(features))

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise inputs (..., features)."""
        rows = inputs.flatten(0, -2)
        scale = torch.ones_like(self.shift)  # torch cannot differentiate twice without one
        return F.batch_norm(rows, None, None, scale, self.shift, training=True).view_as(inputs)


class Convolution(nn.Module):
    """A 3x3 convolution with a margin of one pixel of zeros, without bias, as a product of matrices.

    Faster than grouped or repeated convolutions where every task has its own weights: 1.3 times in the whole
    meta-gradient of one task, and its second derivatives are products of matrices too.

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

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, H, W, C) to (N, H', W', filters)."""
        patches: Tensor = _Patches.apply(images, self.stride)
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
        activations = F.relu(self.norm(self.convolution(images)))
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


class _Patches(torch.autograd.Function):
    """The 3x3 neighbourhoods of pixels, zeros beyond the edge: (..., H, W, C) to (..., H', W', 9 C). Linear."""

    @staticmethod
    def forward(images: Tensor, stride: int) -> Tensor:
        *lead, height, width, channels = images.shape
        padded = F.pad(images.reshape(-1, height, width, channels), (0, 0, 1, 1, 1, 1))
        rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
        image, row, column, _ = padded.stride()
        size = (len(padded), rows, columns, 3, 3 * channels)
        windows = padded.as_strided(size, (image, stride * row, stride * column, row, 1))
        return windows.reshape(*lead, rows, columns, 9 * channels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        images, ctx.stride = inputs
        ctx.size = images.shape[-3:-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Images.apply(gradient, ctx.size, ctx.stride), None

    @staticmethod
    def vmap(info: Any, axes: tuple[int, None], images: Tensor, stride: int) -> tuple[Tensor, int]:
        return _Patches.apply(images.movedim(axes[0], 0), stride), 0


class _Images(torch.autograd.Function):
    """The transpose of `_Patches`: every pixel gets the sum of the entries that were made from it."""

    @staticmethod
    def forward(patches: Tensor, size: tuple[int, int], stride: int) -> Tensor:
        *lead, rows, columns, entries = patches.shape
        (height, width), channels = size, entries // 9
        patches = patches.reshape(-1, rows, columns, 3, 3, channels)
        padded = patches.new_zeros(len(patches), height + 2, width + 2, channels)
        for i in range(3):
            for j in range(3):
                to = padded[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
                to += patches[:, :, :, i, j]
        return padded[:, 1:-1, 1:-1].reshape(*lead, height, width, channels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, int], int], output: Tensor) -> None:
        _, _, ctx.stride = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Patches.apply(gradient, ctx.stride), None, None

    @staticmethod
    def vmap(
        info: Any, axes: tuple[int, None, None], patches: Tensor, size: tuple[int, int], stride: int
    ) -> tuple[Tensor, int]:
        return _Images.apply(patches.movedim(axes[0], 0), size, stride), 0
