"""Evaluation: how well a learner does on held-out tasks, after each gradient step."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metarl.learner import Learner, Stage
from metarl.randomness import keyed_generator
from metarl.rollout import Tasks


@dataclass(frozen=True)
class Evaluation:
    """Returns on test tasks.

    Attributes:
        tasks: dict of arrays (M, ...).
        returns: undiscounted return averaged over the episodes of a task, (S + 1, M).
        stages: parameters and episodes after each step, of this process's share of the tasks.
    """

    tasks: Tasks
    returns: np.ndarray
    stages: list[Stage]

    @property
    def name(self) -> str:
        """What is measured."""
        return "return"

    @property
    def per_task(self) -> np.ndarray:
        """The measurements, (S + 1, M)."""
        return self.returns

    @property
    def mean(self) -> np.ndarray:
        """Over tasks, (S + 1,)."""
        return self.returns.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """Of the mean over tasks, (S + 1,); NaN for a single task."""
        count = self.returns.shape[1]
        return self.returns.std(axis=1, ddof=1) / math.sqrt(count) if count > 1 else np.full(len(self.returns), np.nan)

    def to_json(self) -> dict[str, Any]:
        """Plain data: per gradient step the mean, the standard error over tasks, and the return of every task."""
        steps = {
            f"return/step_{step}": {
                "mean": float(self.mean[step]),
                "standard_error": float(self.standard_error[step]) if self.returns.shape[1] > 1 else None,
                "per_task": returns.tolist(),
            }
            for step, returns in enumerate(self.returns)
        }
        return {**steps, "tasks": {name: values.tolist() for name, values in self.tasks.items()}}


def held_out_tasks(learner: Learner, count: int) -> Tasks:
    """The test tasks of a learner's seed: a stream of its own, which training never draws from."""
    return learner.distribution.sample(count, keyed_generator(learner.seed, "test/tasks"))


def evaluate(learner: Learner, steps: int, tasks: Tasks, episodes: int) -> Evaluation:
    """Adapt to every task, with fresh episodes after each step; the learner's processes divide the tasks.

    Args:
        learner: is left as it was.
        steps: S, gradient steps.
        tasks: dict of arrays (M, ...).
        episodes: E, per task and step.
    """
    stages = learner.adapt(tasks, steps, episodes, purpose="test", processes=learner.processes)
    own = torch.stack([stage.episodes.mean_returns.cpu() for stage in stages], dim=1)
    returns = learner.processes.join(own, len(next(iter(tasks.values())))).T.numpy()
    return Evaluation(tasks, returns, stages)
