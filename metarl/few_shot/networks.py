"""Networks of supervised few-shot learning (Finn et al. 2017, section 5.1 and 5.2, and their code).

Images are (N, H, W, C), with values from 0 to 1. Any other `torch.nn.Module` may be learned as well; these are written
so that they can be differentiated twice, fast, with parameters that differ from task to task.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.few_shot.convolution import Convolution
from metarl.few_shot.normalisation import BatchNorm


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


def averaged(images: Tensor, pixels: int) -> Tensor:
    """Images (M, N, H, W, C) averaged to a height and width and flattened, (M, N, C pixels^2).

    As `torch.nn.functional.adaptive_avg_pool2d`, by two products of matrices, which are several times as fast.
    """
    height, width, channels = images.shape[2:]
    rows = _means(height, pixels, images).mT @ images.flatten(3)
    columns = rows.unflatten(3, (width, channels)).transpose(3, 4) @ _means(width, pixels, images)
    return columns.transpose(2, 3).flatten(2)


def _means(size: int, pixels: int, like: Tensor) -> Tensor:
    """The matrix (size, pixels) by which a row of pixels is averaged to fewer."""
    unit = torch.eye(size, dtype=like.dtype, device=like.device)
    return F.adaptive_avg_pool1d(unit.unsqueeze(0), pixels)[0]


def _glorot(layer: nn.Linear) -> nn.Linear:
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
