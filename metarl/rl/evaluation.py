"""Evaluation: how well a learner does on held-out tasks, after each gradient step."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metarl.core.randomness import keyed_generator
from metarl.rl.learner import Learner, Stage, tells_success
from metarl.rl.task_distribution import Tasks


@dataclass(frozen=True)
class Evaluation:
    """Returns on test tasks.

    Attributes:
        tasks: dict of arrays (M, ...).
        returns: undiscounted return averaged over the episodes of a task, (S + 1, M).
        stages: parameters and episodes after each step, of this process's share of the tasks.
        failures: share of a task's episodes that the simulator gave up on, (S + 1, M).
        successes: share of a task's episodes that succeeded, (S + 1, M); None where the environment does not tell.
    """

    tasks: Tasks
    returns: np.ndarray
    stages: list[Stage]
    failures: np.ndarray
    successes: np.ndarray | None = None

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

    @property
    def uncertainty(self) -> tuple[str, np.ndarray]:
        """What is shown beside the mean: its standard error over tasks, (S + 1,)."""
        return "s.e.", self.standard_error

    @property
    def figures(self) -> dict[str, float]:
        """Means over tasks by name, as `metrics.jsonl` and TensorBoard show them."""
        measured = {"return": self.returns} | ({} if self.successes is None else {"success": self.successes})
        return {
            f"{name}/step_{step}": float(values.mean())
            for name, per_task in measured.items()
            for step, values in enumerate(per_task)
        }

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
        if self.successes is not None:
            steps |= {
                f"success/step_{step}": {"mean": float(rates.mean()), "per_task": rates.tolist()}
                for step, rates in enumerate(self.successes)
            }
        return {**steps, "tasks": {name: values.tolist() for name, values in self.tasks.items()}}


def held_out_tasks(learner: Learner, count: int) -> Tasks:
    """The test tasks of a learner's seed: a stream of its own, which training never draws from.

    They come from the distribution's `sample_test` if it has one, else from `sample`, as training tasks do.
    """
    distribution = learner.distribution
    sample = getattr(distribution, "sample_test", distribution.sample)
    return sample(count, keyed_generator(learner.seed, "test/tasks"))


def evaluate(learner: Learner, steps: int, tasks: Tasks, episodes: int) -> Evaluation:
    """Adapt to every task, with fresh episodes after each step; the learner's processes divide the tasks.

    Args:
        learner: is left as it was.
        steps: S, gradient steps.
        tasks: dict of arrays (M, ...).
        episodes: E, per task and step.
    """
    stages = learner.adapt(tasks, steps, episodes, purpose="test", processes=learner.processes)
    count = len(next(iter(tasks.values())))

    def of_all_tasks(own: list[torch.Tensor]) -> np.ndarray:
        return learner.processes.join(torch.stack(own, dim=1).cpu(), count).T.numpy()

    returns = of_all_tasks([stage.episodes.mean_returns for stage in stages])
    failures = of_all_tasks([stage.episodes.failure_rates for stage in stages])
    told = tells_success(stages, learner.processes)
    rates = of_all_tasks([stage.episodes.success_rates for stage in stages]) if told else None
    return Evaluation(tasks, returns, stages, failures, rates)
