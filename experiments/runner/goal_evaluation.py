"""How Meta-World counts successes, and without its bias: adaptation to each goal, then episodes of the adapted policy.

Adaptation samples episodes of full length from the policy as it is; the adapted policy takes its most likely actions.
Resets, actions and physics are then functions of the goal, so all episodes of a goal are alike: one is played.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metarl.core.parameters import Parameters, call_per_task
from metarl.rl.action_distributions import action_distribution_for
from metarl.rl.evaluation import ReturnEvaluation
from metarl.rl.learner import Learner
from metarl.rl.task_distribution import Tasks

EPISODES = 3  # of each environment, which Meta-World 3.1.1 counts


@torch.no_grad()
def first_successes(learner: Learner, parameters: Parameters, tasks: Tasks, lanes: int) -> np.ndarray:
    """Play an episode of each task with its own parameters and the most likely actions.

    Args:
        learner: whose environments and policy these are.
        parameters: of the policy, (M, ...).
        tasks: dict of arrays (M, ...).
        lanes: tasks that are played at a time.

    Returns:
        the number of time steps up to the first success of each task, 0 where there was none, (M,).
    """
    distribution, count = learner.task_distribution, len(next(iter(tasks.values())))
    parts = [slice(start, min(start + lanes, count)) for start in range(0, count, lanes)]
    played = []
    for part in parts:
        envs = distribution.make(part.stop - part.start)
        own = {name: values[part] for name, values in tasks.items()}
        played.append(_play(learner, {name: value[part] for name, value in parameters.items()}, envs, own))
        envs.close()
    return np.concatenate(played)


def _play(learner: Learner, parameters: Parameters, envs: Any, tasks: Tasks) -> np.ndarray:
    """The time steps up to the first success, (N,)."""
    distribution, device = learner.task_distribution, next(iter(parameters.values())).device
    family = action_distribution_for(distribution.action_space)
    observations, _ = envs.reset(seed=list(range(envs.num_envs)), options={"tasks": tasks})
    first, running = np.zeros(envs.num_envs, int), np.ones(envs.num_envs, bool)
    for step in range(1, distribution.horizon + 1):
        seen = torch.as_tensor(np.asarray(observations, np.float32), device=device)[:, None]  # (N, 1, O)
        modes = family.mode(call_per_task(learner.policy, parameters, seen))[:, 0]
        actions = family.to_environment(modes.cpu().numpy())
        observations, _, terminated, truncated, infos = envs.step(actions)
        success = running & np.asarray(infos.get("success", np.zeros(envs.num_envs)), bool)
        first[success] = step
        running &= ~(terminated | truncated | success)
        if not running.any():
            break
    return first


def official_success(names: Sequence[str], first_success: np.ndarray, horizon: int) -> dict[str, float]:
    """The share of successes of each environment as Meta-World 3.1.1 counts them: of the first episodes to end.

    The lanes of an environment have a goal each and play episode after episode. One ends at its first success or after
    `horizon` steps, and the first three that end count, whatever their goals. A goal that is solved quickly therefore
    counts three times where the others fail.

    Args:
        names: of the environment of each lane, N.
        first_success: (N,) time steps up to the success of a lane's episodes, 0 for none.
        horizon: T.
    """
    ended: dict[str, list[tuple[int, int, bool]]] = {}
    for lane, (name, first) in enumerate(zip(names, first_success.tolist(), strict=True)):
        length = first or horizon
        ended.setdefault(name, []).extend((number * length, lane, first > 0) for number in range(1, EPISODES + 1))
    return {name: float(np.mean([success for *_, success in sorted(of)[:EPISODES]])) for name, of in ended.items()}


@dataclass(frozen=True, kw_only=True)
class GoalEvaluation(ReturnEvaluation):
    """An evaluation with the successes of adapted policies that take their most likely actions.

    `others` has, per goal: `success/per_goal`, whether its episodes succeed; `success/official`, the share that
    Meta-World counts for the goal's environment and batch of goals; and both for each environment under its name.
    """


def evaluate_goals(learner: Learner, evaluation: ReturnEvaluation, names: Sequence[str], lanes: int) -> GoalEvaluation:
    """Add the successes of the adapted policies to an evaluation of the same learner.

    Args:
        learner: of the evaluation.
        evaluation: with the parameters after the last gradient step.
        names: of the environment of each task.
        lanes: goals in a batch of the official count: as many of each environment in each.
    """
    shard = learner.processes.shard(len(names))
    own_tasks = {name: values[shard] for name, values in evaluation.tasks.items()}
    own_first = first_successes(learner, dict(evaluation.path[-1].parameters), own_tasks, lanes)
    first_success = learner.processes.all_gather(torch.from_numpy(own_first), len(names)).numpy()
    official = np.zeros(len(names))
    for batch in batches_of_goals(names, lanes):
        horizon = learner.task_distribution.horizon
        shares = official_success([names[task] for task in batch], first_success[batch], horizon)
        official[batch] = [shares[names[task]] for task in batch]
    others = {"success/per_goal": (first_success > 0).astype(float), "success/official": official}
    if len(kinds := list(dict.fromkeys(names))) > 1:
        for kind in kinds:
            own = np.array([name == kind for name in names])
            others |= {f"{metric}/{kind}": others[metric][own] for metric in ("success/per_goal", "success/official")}
    fields = {name: getattr(evaluation, name) for name in ("metric", "per_task", "tasks", "path", "failures")}
    return GoalEvaluation(**fields, others={**evaluation.others, **others})


def batches_of_goals(names: Sequence[str], size: int) -> list[np.ndarray]:
    """The tasks of each batch: of each environment the same number, in their order, as many as fit."""
    kinds = list(dict.fromkeys(names))
    of_kind = [np.flatnonzero([name == kind for name in names]) for kind in kinds]
    each = max(1, size // len(kinds))
    rounds = range(0, max(map(len, of_kind)), each)
    return [np.concatenate([own[start : start + each] for own in of_kind]) for start in rounds]
