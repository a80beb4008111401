"""Predictive distributions of regression, and how all methods are judged by them: error, and negative log-likelihood.

Axes: M tasks, S components of a mixture, Q query examples.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """A mixture of S Gaussians of equal weight for every target: p(y) = 1/S sum_s N(y; mean_s, variance_s).

    Components are what a method has samples of: particles, or weights drawn from a posterior. A method that predicts
    one value has a single component.

    Attributes:
        means: (M, S, Q, ...), the outputs of each component.
        variance: (M, S), of the noise of targets about the outputs.
    """

    means: Tensor
    variance: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean of the distribution, (M, Q, ...)."""
        return self.means.mean(dim=1)

    @property
    def std(self) -> Tensor:
        """Its standard deviation, (M, Q, ...), by the noise and by the components' disagreement."""
        between = self.means.var(dim=1, correction=0)
        noise = self.variance.mean(dim=1).view(-1, *[1] * (between.ndim - 1))
        return (noise + between).sqrt()

    def log_density(self, targets: Tensor) -> Tensor:
        """Return log p(y) of each example, (M, Q), for targets (M, Q, ...), whose elements are independent."""
        errors = (self.means - targets.unsqueeze(1)).square().reshape(*self.means.shape[:3], -1)
        variance = self.variance.unsqueeze(2)
        scale = errors.shape[3] / 2 * (2 * math.pi * variance).log()
        of_components = -errors.sum(dim=3) / (2 * variance) - scale
        return of_components.logsumexp(dim=1) - math.log(errors.shape[1])


def predictive_metrics(mixture: Mixture, targets: Tensor) -> dict[str, Tensor]:
    """Return how a predictive distribution does on query examples (M, Q, ...), each (M,), by name.

    `nll` is the mean of -log p(y) over the examples. `members` is the mean over components of each one's own squared
    error, and `best_member` the smallest of these. The error of the mixture's mean is never above `members`, so a
    comparison of one method's mean with another's members favours the first; the metric of an evaluation is the error
    of the mean for all methods.
    """
    errors = (mixture.means - targets.unsqueeze(1)).square().flatten(2).mean(dim=2)
    return {
        "nll": -mixture.log_density(targets).mean(dim=1),
        "members": errors.mean(dim=1),
        "best_member": errors.amin(dim=1),
    }


def sample_variance(like: Tensor, std: float) -> Tensor:
    """Return the variance of noise of one standard deviation for all of the components of means (M, S, Q, ...)."""
    return torch.full(like.shape[:2], std**2, dtype=like.dtype, device=like.device)
