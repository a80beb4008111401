"""Evaluation of RL^2: the return in each episode of a trial, on held-out tasks, and the metrics of training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarl.core.validation import require_whole
from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.episodes import Episodes
from metarl.rl.evaluation import TaskEvaluation
from metarl.rl.sampler import num_rows
from metarl.rl.task_distribution import Tasks

if TYPE_CHECKING:
    from metarl.rl.rl2.learner import RL2Learner


@dataclass(frozen=True)
class TrialStep:
    """One of the E episodes of a trial, for each of R trials of each task.

    Attributes:
        episodes: M x R.
        number: k, of the episodes that are earlier in the trial.
        trial: all episodes of the first trial of each task, M x E.
    """

    episodes: Episodes
    number: int
    trial: Episodes


@dataclass(frozen=True, kw_only=True)
class TrialEvaluation(TaskEvaluation):
    """Returns in each episode of a trial, averaged over the trials of each task.

    `per_task[k]` are the returns in the episode that has k earlier ones in its trial, (E, M): step k is episode k + 1.
    Other than after gradient steps, what is learned is learned from k episodes, not from k batches of episodes.
    `others` has their sum over a trial, `trial`.

    Attributes:
        path: of each episode of a trial, those of all tasks and trials.
    """

    step_name: ClassVar[str] = "earlier episodes"

    path: Sequence[TrialStep]


def evaluate(
    learner: "RL2Learner", tasks: Tasks, episodes: int | None = None, trials_per_task: int = 1
) -> TrialEvaluation:
    """Play trials of every task; the learner is left as it was.

    Args:
        learner: that has been trained.
        tasks: dict of arrays (M, ...).
        episodes: E of each trial; None for as many as in training.
        trials_per_task: R.
    """
    require_whole("trials_per_task", trials_per_task)
    count = num_rows(tasks)
    repeated = {name: np.repeat(values, trials_per_task, axis=0) for name, values in tasks.items()}
    played, _ = learner.play(repeated, episodes)

    def of_tasks(values: Tensor) -> np.ndarray:
        """(M * R, E) to the mean over trials, (E, M)."""
        return values.double().cpu().view(count, trials_per_task, -1).mean(dim=1).T.numpy()

    returns = of_tasks(played.returns)
    others = {"trial": returns.sum(axis=0)}
    if played.succeeded is not None:
        others["success"] = of_tasks(played.succeeded)
    first = played.of_tasks(slice(None, None, trials_per_task))
    path = [TrialStep(played.episode(e, trials_per_task), e, first) for e in range(len(returns))]
    return TrialEvaluation("return", returns, others, tasks=tasks, path=path, failures=of_tasks(played.failed))


def trial_metrics(episodes: Episodes, action_distribution: ActionDistribution) -> dict[str, float]:
    """The metrics of an iteration's trials, by name: means over tasks.

    Args:
        episodes: M x E.
        action_distribution: the family of the policy's outputs.
    """
    returns = episodes.returns.double()
    metrics = {f"return/step_{k}": value for k, value in enumerate(returns.mean(dim=0).tolist())}
    metrics["return/trial"] = returns.sum(dim=1).mean().item()
    if episodes.succeeded is not None:
        shares = episodes.succeeded.double().mean(dim=0).tolist()
        metrics |= {f"success/step_{k}": value for k, value in enumerate(shares)}
    return {
        **metrics,
        "episode_length": episodes.lengths.double().mean().item(),
        "episodes": returns.numel(),
        "failed_episodes": int(torch.count_nonzero(episodes.failed)),
        **action_distribution.summary(episodes.dist_params[episodes.valid]),
    }
