"""The metrics of a meta-iteration, as `metrics.jsonl` and TensorBoard show them."""

from collections.abc import Sequence

import torch

from metarl.core.distributed import Processes
from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.adaptation_step import AdaptationStep
from metarl.rl.outer import UpdateOutcome


def sampling_metrics(
    path: Sequence[AdaptationStep], action_distribution: ActionDistribution, num_tasks: int, processes: Processes
) -> dict[str, float]:
    """Means over the tasks and sums over the episodes of a meta-iteration. Collective: every rank must call it.

    Args:
        path: the S + 1 adaptation steps of this process's tasks.
        action_distribution: the family of the policy's outputs.
        num_tasks: M, of all processes.
        processes: that divide the tasks.

    Returns:
        by name: `return/step_k` (undiscounted) and `success/step_k` after k inner steps, figures of inner gradients,
        baseline and policy, `env_steps` of this iteration, and numbers of episodes.
    """
    query = path[-1]
    per_task = {f"return/step_{step}": at.episodes.mean_returns for step, at in enumerate(path)}
    if reports_success(path, processes):
        per_task |= {f"success/step_{step}": at.episodes.success_rates for step, at in enumerate(path)}
    per_task["inner_gradient_norm"] = query.gradient_norm
    per_task["explained_variance"] = query.values.explained_variance
    query_steps = query.episodes.env_steps
    summary = action_distribution.summary(query.episodes.dist_params[query.episodes.valid])
    sums = {name: float(values.double().sum()) for name, values in per_task.items()}
    sums |= {name: value * query_steps for name, value in summary.items()}
    sums |= {"query_steps": query_steps, "query_episodes": _num_episodes(query)}
    sums |= {
        "env_steps": sum(at.episodes.env_steps for at in path),
        "episodes": sum(_num_episodes(at) for at in path),
        "failed_episodes": sum(int(at.episodes.failed.sum()) for at in path),
    }
    total = dict(
        zip(
            sums, processes.all_reduce_sum(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist(), strict=True
        )
    )
    means = {name: total[name] / num_tasks for name in per_task}
    return {
        "env_steps": int(total["env_steps"]),
        **means,
        "adaptation_gain": means[f"return/step_{len(path) - 1}"] - means["return/step_0"],
        "episode_length": total["query_steps"] / total["query_episodes"],
        "episodes": int(total["episodes"]),
        "failed_episodes": int(total["failed_episodes"]),
        **{name: total[name] / total["query_steps"] for name in summary},
    }


def update_metrics(outcome: UpdateOutcome) -> dict[str, float]:
    """What the outer optimiser says of its update."""
    return {
        "kl": outcome.kl,
        **outcome.details,
        "accepted": float(outcome.status == "accepted"),
        "loss_before": outcome.loss_before,
        "loss_after": outcome.loss_after,
        "meta_gradient_norm": outcome.gradient_norm,
    }


def reports_success(path: Sequence[AdaptationStep], processes: Processes) -> bool:
    """Whether the environment has reported `success` in any of the episodes, in any process."""
    return processes.all_reduce_max(int(any(at.episodes.succeeded is not None for at in path))) > 0


def _num_episodes(at: AdaptationStep) -> int:
    return int(at.episodes.valid.any(dim=1).sum())
