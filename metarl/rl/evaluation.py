"""Evaluation: the returns of a learner on held-out tasks, after each gradient step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from metarl.core.evaluation import Evaluation
from metarl.core.randomness import keyed_generator
from metarl.rl.adaptation_step import AdaptationStep
from metarl.rl.metrics import reports_success
from metarl.rl.sampler import num_rows
from metarl.rl.task_distribution import TaskDistribution, Tasks

if TYPE_CHECKING:
    from metarl.rl.learner import Learner


@dataclass(frozen=True, kw_only=True)
class TaskEvaluation(Evaluation):
    """Undiscounted returns on tasks of reinforcement learning, averaged over the episodes of each task.

    Where the environment reports it, `others` has the share of a task's episodes that succeeded, `success`.

    Attributes:
        tasks: dict of arrays (M, ...).
        failures: share of a task's episodes that the simulator gave up on, (S + 1, M).
        path: S + 1 records, each of them with its `episodes`; the learner's `agent` makes an acting policy of one.
    """

    tasks: Tasks
    failures: np.ndarray
    path: Sequence[Any]

    def to_json(self) -> dict[str, Any]:
        """As of any evaluation, with the tasks."""
        return {**super().to_json(), "tasks": {name: values.tolist() for name, values in self.tasks.items()}}


@dataclass(frozen=True, kw_only=True)
class ReturnEvaluation(TaskEvaluation):
    """Returns after each gradient step.

    Attributes:
        path: parameters and episodes after each gradient step, of this process's shard of the tasks.
    """

    path: Sequence[AdaptationStep]


class HasTasks(Protocol):
    """What names held-out tasks; any learner of reinforcement learning does."""

    @property
    def task_distribution(self) -> TaskDistribution: ...

    @property
    def seed(self) -> int: ...


def held_out_tasks(learner: HasTasks, count: int, split: str = "test") -> Tasks:
    """The held-out tasks of a learner's seed: streams of their own, which training never draws from.

    They come from the distribution's `sample_test` if it has one, else from `sample`, as training tasks do; validation
    tasks come from its `sample_validation` if it has that.

    Args:
        learner: whose seed names the tasks.
        count: M.
        split: `validation`, by which settings and iterates are chosen, or `test`, on which results are reported.
    """
    distribution = learner.task_distribution
    sample = getattr(distribution, "sample_test", distribution.sample)
    if split == "validation":
        sample = getattr(distribution, "sample_validation", sample)
    return sample(count, keyed_generator(learner.seed, f"{split}/tasks"))


def evaluate(
    learner: "Learner", tasks: Tasks, inner_steps: int, episodes_per_task: int | None = None
) -> ReturnEvaluation:
    """Adapt to every task, with fresh episodes after each gradient step; the learner is left as it was.

    Collective: the learner's processes divide the tasks.

    Args:
        learner: that has been trained.
        tasks: dict of arrays (M, ...).
        inner_steps: S, gradient steps.
        episodes_per_task: E, after each step; None takes the learner's own.
    """
    path = learner.adapt_shard(tasks, inner_steps, episodes_per_task)
    processes, count = learner.processes, num_rows(tasks)

    def of_all_tasks(own: list[torch.Tensor]) -> np.ndarray:
        return processes.all_gather(torch.stack(own, dim=1).cpu(), count).T.numpy()

    returns = of_all_tasks([at.episodes.mean_returns for at in path])
    failures = of_all_tasks([at.episodes.failure_rates for at in path])
    others = {}
    if reports_success(path, processes):
        others["success"] = of_all_tasks([at.episodes.success_rates for at in path])
    return ReturnEvaluation("return", returns, others, tasks=tasks, path=path, failures=failures)
