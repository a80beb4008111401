"""Noise of methods that draw at random: it belongs to the tasks, so a method remains a function of what it is given.

Tasks of training and of evaluations hold noise that was drawn with them, keyed as they are. Support examples of the
caller's own hold none; for these every task gets the same fixed numbers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.core.randomness import keyed_generator
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks


@dataclass(frozen=True)
class NoisyExamples(Examples):
    """Examples with noise that a method takes as its random numbers.

    Attributes:
        noise: (M, n).
    """

    noise: Tensor


class NoisyTasks:
    """The tasks of a distribution whose support examples hold noise.

    Args:
        task_distribution: whose tasks they are.
        size: n, numbers of a task.
        uniform: whether they are uniform in (0, 1), not standard normal.
    """

    def __init__(self, task_distribution: FewShotDistribution, size: int, uniform: bool = False):
        self.task_distribution, self.size, self.uniform = task_distribution, size, uniform

    def __getattr__(self, name: str) -> Any:
        if name in ("ways", "images"):  # that a distribution may have
            return getattr(self.task_distribution, name)
        raise AttributeError(name)

    def sample(self, num_tasks: int, split: str, rng: np.random.Generator) -> FewShotTasks:
        """Draw M tasks, and then the noise."""
        tasks = self.task_distribution.sample(num_tasks, split, rng)
        support = tasks.support
        noise = torch.from_numpy(_draw(rng, num_tasks, self.size, self.uniform)).to(support.inputs)
        return FewShotTasks(NoisyExamples(support.inputs, support.targets, noise), tasks.query)


def noise_of(support: Examples, size: int, uniform: bool = False) -> Tensor:
    """Return the noise (M, n) of support examples, the same for all tasks where they hold none."""
    if isinstance(support, NoisyExamples):
        return support.noise
    return fixed_noise(support.inputs, 1, size, uniform).expand(len(support.inputs), size)


def fixed_noise(like: Tensor, rows: int, size: int, uniform: bool = False) -> Tensor:
    """Return the first rows (rows, n) of one fixed sequence of noise, of a tensor's type and on its device."""
    return torch.from_numpy(_draw(keyed_generator(0, "few_shot/noise"), rows, size, uniform)).to(like)


def _draw(rng: np.random.Generator, rows: int, size: int, uniform: bool) -> np.ndarray:
    """Numbers (rows, n); uniform ones are multiples of 2^-53 that are neither 0 nor 1."""
    if uniform:
        return rng.integers(1, 2**53, (rows, size)) / 2**53
    return rng.standard_normal((rows, size))
