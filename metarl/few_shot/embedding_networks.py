"""Networks that embed images, for methods whose weights are the same for all tasks.

Images are (N, H, W, C), with values from 0 to 1. With one set of weights torch's own convolution is the fastest, in the
memory order of these images; `metarl.few_shot.networks` is for weights that differ from task to task.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.few_shot.normalisation import EPSILON, BatchNorm, Moments


class EmbeddingBlock(nn.Module):
    """A 3x3 convolution without bias, batch norm with scale and shift, ReLU, and 2x2 max pooling where it is wanted.

    As max pooling is monotone, images are pooled before they are normalised, with the statistics of all pixels, which
    gives the same numbers for a quarter of the work. Where a scale is negative, its filter's sign is changed before.

    Args:
        channels: of the input.
        filters: of the output.
        stride: of the convolution.
        padding: pixels of zeros around the input.
        pooled: whether there is max pooling.
    """

    def __init__(self, channels: int, filters: int, stride: int = 1, padding: int = 1, pooled: bool = True):
        super().__init__()
        self.stride, self.padding, self.pooled = stride, padding, pooled
        self.weight = nn.Parameter(torch.empty(filters, channels, 3, 3))
        nn.init.xavier_uniform_(self.weight)
        self.norm = ScaledBatchNorm(filters)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, H, W, C) to (N, H', W', filters)."""
        return self.activated(self.convolved(images))

    def convolved(self, images: Tensor, channels: slice = slice(None)) -> Tensor:
        """Images (N, H, W, C), which may hold some of the channels only, to a summand of what `activated` takes."""
        weight = torch.where(self.norm.scale.view(-1, 1, 1, 1) < 0, -self.weight, self.weight)[:, channels]
        found = F.conv2d(images.permute(0, 3, 1, 2), weight, stride=self.stride, padding=self.padding)
        return found.permute(0, 2, 3, 1).contiguous()  # which it is already, where torch keeps the order of memory

    def activated(self, found: Tensor) -> Tensor:
        """Normalise, pool and rectify what was convolved."""
        return F.relu(self.norm(found, self.pooled))


class ScaledBatchNorm(BatchNorm):
    """y = scale (x - mean) / sqrt(variance + 1e-5) + shift (Ioffe and Szegedy 2015), for images that may be pooled."""

    def __init__(self, features: int):
        super().__init__(features)
        self.scale = nn.Parameter(torch.ones(features))

    def forward(self, images: Tensor, pooled: bool = False) -> Tensor:
        """Normalise images (N, H, W, features) whose sign was changed where the scale is negative.

        Args:
            images: before normalisation.
            pooled: whether the maximum of 2x2 pixels is taken.
        """
        sign = torch.where(self.scale < 0, -1.0, 1.0).to(images.dtype)
        if self.mean is not None and self.variance is not None:
            found = _pooled(images)[0] if pooled else images
            mean, variance = self.mean * sign, self.variance
        else:
            found, mean, variance = _PooledMoments.apply(images, pooled)[:3]
            self._note(images, mean * sign, variance)
        factor = self.scale.abs() * (variance + EPSILON).rsqrt()
        return torch.addcmul(self.shift - mean * factor, found, factor)

    def _note(self, images: Tensor, mean: Tensor, variance: Tensor) -> None:
        if self.seen is not None:
            count = images.shape[:-1].numel()
            self.seen.append(Moments(mean, variance, variance * (count / max(1, count - 1))))


class EmbeddingNet(nn.Module):
    """Four blocks of 3x3 convolutions: Conv-4, as most few-shot methods use it (Vinyals et al. 2016).

    Args:
        size: (H, W, C) of the images.
        filters: of each block.
        blocks: of each block (stride, padding, pooled): `POOLED`, `STRIDED` or `UNPADDED`.
        as_map: whether the output is the last block's map (N, H', W', filters), or one vector per image.
    """

    POOLED = ((1, 1, True),) * 4
    STRIDED = ((2, 1, False),) * 4  # a quarter of the work of POOLED
    UNPADDED = ((1, 0, True), (1, 0, True), (1, 1, False), (1, 1, False))  # of relation networks: 28 to 5 pixels

    def __init__(
        self,
        size: Sequence[int],
        filters: int = 64,
        blocks: Sequence[tuple[int, int, bool]] = POOLED,
        as_map: bool = False,
    ):
        super().__init__()
        self.as_map = as_map
        channels = [size[2], *[filters] * len(blocks)]
        self.blocks = nn.Sequential(
            *(EmbeddingBlock(before, filters, *block) for before, block in zip(channels, blocks, strict=False))
        )
        with torch.no_grad():
            self.output_shape = tuple(self(torch.zeros(1, *size)).shape[1:])

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, H, W, C) to (N, features), or to maps."""
        found = self.blocks(images)
        return found if self.as_map else found.flatten(1)


def _pooled(images: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum of each 2x2 pixels, (N, H, W, F) to (N, H', W', F), and which pixels those are."""
    found, indices = F.max_pool2d(images.permute(0, 3, 1, 2), 2, return_indices=True)
    return found.permute(0, 2, 3, 1), indices.permute(0, 2, 3, 1)


class _PooledMoments(torch.autograd.Function):
    """Images (..., N, H, W, F) to their pooled selves, or to themselves, and mean and variance (..., F) of all pixels.

    With p the pooled pixels, the gradient in a pixel x of n is that of p where x was the maximum, plus
    dL/dmean / n + dL/dvariance 2 (x - mean) / n: two passes over all pixels, one forwards and one backwards.
    """

    @staticmethod
    def forward(images: Tensor, pooled: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        lead = images.shape[:-4]
        tasks = images.reshape(-1, *images.shape[-4:])
        moments = [_moments(one.flatten(0, 2)) for one in tasks]
        mean, variance = (torch.stack(of).view(*lead, -1) for of in zip(*moments, strict=True))
        if not pooled:
            return images.view_as(images), mean, variance, mean.new_zeros(*lead, 0)
        found, indices = _pooled(tasks.flatten(0, 1))
        shape = (*images.shape[:-3], *found.shape[1:])
        return found.reshape(shape), mean, variance, indices.reshape(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: tuple[Tensor, ...]) -> None:
        ctx.pooled = inputs[1]
        ctx.save_for_backward(inputs[0], output[1], output[3])
        ctx.mark_non_differentiable(output[3])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_pixels: Tensor, of_mean: Tensor, of_variance: Tensor, _: Tensor) -> tuple[Tensor, None]:
        images, mean, indices = ctx.saved_tensors
        wide = (*mean.shape[:-1], 1, 1, 1, mean.shape[-1])
        count = images.shape[-4:-1].numel()
        slope = 2 / count * of_variance
        constant = (of_mean / count - slope * mean).view(wide)
        found = torch.addcmul(constant, images, slope.view(wide))
        if not ctx.pooled:
            return found.add_(of_pixels), None
        rows = found.view(*images.shape[:-3], -1, images.shape[-1])
        rows.scatter_add_(-2, indices.flatten(-3, -2), of_pixels.flatten(-3, -2))
        return found, None

    @staticmethod
    def vmap(info: Any, axes: tuple[int, None], images: Tensor, pooled: bool) -> tuple[tuple[Tensor, ...], int]:
        return _PooledMoments.apply(images.movedim(axes[0], 0), pooled), 0


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of rows (n, F), without a copy of them."""
    mean = rows.mean(dim=0)
    return mean, torch.stack([(part - mean).square().sum(dim=0) for part in rows.split(4096)]).sum(dim=0) / len(rows)
