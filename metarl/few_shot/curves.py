"""Curves of several families, for methods that are told apart by them: other frequencies, lines, noise, fixed tasks.

MT-net              sine curves of frequency 0.8 to 1.2, as Meta-SGD has them; polynomials of orders 0, 1 and 2
Bayesian MAML       sine curves of frequency 0.5 to 2 and any phase; 100 training tasks in all
PLATIPUS            sine curves and lines with noise of standard deviation 0.3
LLAMA               support points on one half of the range alone
"""

from dataclasses import dataclass

import numpy as np
import torch

from metarl.core.randomness import keyed_generator
from metarl.core.validation import require, require_whole
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks

Range = tuple[float, float]


@dataclass(frozen=True)
class Curves:
    """Regression on curves of one family or more, each drawn with equal probability; all splits are the same.

        sine         y = A sin(f x - phase)
        line         y = slope x + intercept
        polynomial   y = sum_i c_i x^i / 2^i,  i = 0 ... order,  c_i in [-1, 1]

    Attributes:
        shots: K, support points.
        queries: query points.
        families: of `sine`, `line` and `polynomial`.
        amplitude, frequency, phase: ranges of sine curves.
        coefficient: range of a line's slope and of its intercept.
        order: of polynomials.
        x: range of query points.
        support_x: range of support points; None for that of query points.
        noise_std: of normal noise that is added to all targets.
        relative_noise: further noise of sine curves, as a share of the amplitude.
    """

    shots: int = 10
    queries: int = 10
    families: tuple[str, ...] = ("sine",)
    amplitude: Range = (0.1, 5.0)
    frequency: Range = (1.0, 1.0)
    phase: Range = (0.0, np.pi)
    coefficient: Range = (-3.0, 3.0)
    order: int = 2
    x: Range = (-5.0, 5.0)
    support_x: Range | None = None
    noise_std: float = 0.0
    relative_noise: float = 0.0

    def __post_init__(self) -> None:
        require_whole("shots", self.shots)
        require_whole("queries", self.queries)
        require_whole("order", self.order, at_least=0)
        known = ("sine", "line", "polynomial")
        for family in self.families:
            require(family in known, "families", self.families, f"a tuple of {', '.join(known)}")

    def sample(self, num_tasks: int, split: str, rng: np.random.Generator) -> FewShotTasks:
        """Draw curves and points: inputs and targets (M, N, 1)."""
        shape = (num_tasks, 1, 1)
        x = np.concatenate(
            [
                rng.uniform(*(self.support_x or self.x), (num_tasks, self.shots, 1)),
                rng.uniform(*self.x, (num_tasks, self.queries, 1)),
            ],
            axis=1,
        )
        amplitude = rng.uniform(*self.amplitude, shape)
        angle = rng.uniform(*self.frequency, shape) * x - rng.uniform(*self.phase, shape)
        slope, intercept = rng.uniform(*self.coefficient, (2, *shape))
        powers = (x / 2) ** np.arange(self.order + 1)
        values = {
            "sine": amplitude * np.sin(angle),
            "line": slope * x + intercept,
            "polynomial": (powers * rng.uniform(-1, 1, (num_tasks, 1, self.order + 1))).sum(axis=2, keepdims=True),
        }
        family = rng.integers(len(self.families), size=shape)
        y = np.choose(np.broadcast_to(family, x.shape), [values[name] for name in self.families])
        is_sine = np.choose(family, [float(name == "sine") for name in self.families])
        spread = self.noise_std + self.relative_noise * amplitude * is_sine
        y = y + spread * rng.standard_normal(x.shape)
        inputs, targets = torch.from_numpy(x).float(), torch.from_numpy(y).float()
        support, query = (
            Examples(inputs[:, part], targets[:, part]) for part in (slice(0, self.shots), slice(self.shots, None))
        )
        return FewShotTasks(support, query)


class FixedTasks:
    """A distribution whose training tasks, their examples included, are a few that were drawn beforehand.

    Args:
        task_distribution: from which they were drawn; other splits are its own.
        count: how many there are.
    """

    def __init__(self, task_distribution: FewShotDistribution, count: int):
        require_whole("count", count)
        self.task_distribution, self.count = task_distribution, count
        self._tasks = task_distribution.sample(count, "train", keyed_generator(0, "few_shot/fixed_tasks"))

    def sample(self, num_tasks: int, split: str, rng: np.random.Generator) -> FewShotTasks:
        """Draw M tasks of those there are, as often as need be."""
        if split != "train":
            return self.task_distribution.sample(num_tasks, split, rng)
        chosen = torch.from_numpy(rng.integers(self.count, size=num_tasks))
        return self._tasks.like([tensor[chosen.to(tensor.device)] for tensor in self._tasks.tensors])
