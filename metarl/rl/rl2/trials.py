"""Trials: the episodes of a task, one after the other, as one sequence of steps that a memory goes through.

Axes: M trials, one per task; E episodes of a trial; T time steps of an episode at most; L steps of the longest trial; I
inputs of a policy. Episodes are `Episodes` with axes (M, T, E, ...), in the order of e.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.advantages import generalised_advantages, standardise
from metarl.rl.episodes import Episodes


@dataclass(frozen=True)
class Trials:
    """M trials as sequences without gaps: episodes that end early are followed by the next one at once.

    Attributes:
        inputs: (M, L, I), what the policy saw in each step.
        actions: (M, L, A), or (M, L) where they are discrete.
        dist_params: (M, L, P) at the time of sampling.
        log_probs: (M, L) of the actions at the time of sampling.
        rewards: (M, L) as learning sees them, 0 where not valid.
        values: (M, L), of the policy at the time of sampling.
        valid: (M, L) bool; a prefix of every trial.
    """

    inputs: Tensor
    actions: Tensor
    dist_params: Tensor
    log_probs: Tensor
    rewards: Tensor
    values: Tensor
    valid: Tensor

    def at(self, trials: Tensor) -> "Trials":
        """Some of the trials, by number."""
        return replace(self, **{field.name: getattr(self, field.name)[trials] for field in fields(self)})


def step_inputs(observations: Tensor, actions: Tensor, rewards: Tensor, ended: Tensor) -> Tensor:
    """What a policy sees: [observation, previous action, previous reward, 1 if the previous step ended an episode].

    Args:
        observations: (..., O).
        actions: of the step before, as `ActionDistribution.encode` gives them, (..., A).
        rewards, ended: of the step before, (...).
    """
    return torch.cat([observations, actions, rewards.unsqueeze(-1), ended.to(rewards.dtype).unsqueeze(-1)], dim=-1)


def to_trials(episodes: Episodes, rewards: Tensor, values: Tensor, action_distribution: ActionDistribution) -> Trials:
    """Put the valid steps of each trial's episodes in the order in which they were played.

    The reward of an episode's last step, and that the episode ended, by termination or at the time limit, are in the
    first input of the next one. Nothing is carried into the first step of a trial.

    Args:
        episodes: M x E; the policy has seen their rewards.
        rewards: as learning sees them, such as with a penalty, (M, T, E).
        values: of the policy in each step, (M, T, E).
        action_distribution: the family of the policy's outputs.
    """
    valid = episodes.valid.transpose(1, 2).flatten(1)  # (M, E * T)
    length = int(valid.sum(dim=1).max())
    order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]
    rows = torch.arange(len(order), device=order.device).unsqueeze(1)

    def in_order(steps: Tensor) -> Tensor:
        return steps.transpose(1, 2).flatten(1, 2)[rows, order]  # (M, T, E, ...) to (M, L, ...)

    time = torch.arange(episodes.valid.shape[1], device=valid.device).view(1, -1, 1)
    ended = time == episodes.lengths.unsqueeze(1) - 1
    actions, valid = in_order(episodes.actions), in_order(episodes.valid)
    inputs = step_inputs(
        in_order(episodes.observations.flatten(3)),
        _delayed(action_distribution.encode(actions)),
        _delayed(in_order(episodes.rewards)),
        _delayed(in_order(ended)),
    )
    return Trials(
        inputs=torch.where(valid.unsqueeze(-1), inputs, 0),
        actions=actions,
        dist_params=in_order(episodes.dist_params),
        log_probs=in_order(episodes.log_probs),
        rewards=in_order(rewards),
        values=in_order(values),
        valid=valid,
    )


def trial_advantages(trials: Trials, discount: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Advantages and lambda-returns over whole trials, which do not end with an episode.

    A_l = delta_l + discount * lambda * A_{l+1}, delta_l = r_l + discount * V_{l+1} - V_l, with l counting the steps of
    a trial; the value after its last step is 0. So an action is credited with what later episodes gain by it, which is
    what makes exploring pay (Duan et al. 2016, section 2.2).

    Returns:
        A and A + V, (M, L) each, 0 where not valid; not standardised.
    """
    rewards, values, valid = (part.unsqueeze(-1) for part in (trials.rewards, trials.values, trials.valid))
    advantages = generalised_advantages(rewards, values, valid, discount, gae_lambda).squeeze(-1)
    return advantages, torch.where(trials.valid, advantages + trials.values, 0)


def standardised(advantages: Tensor, valid: Tensor) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over the valid steps of all trials together; (M, L).

    Other than for a policy-gradient step of each task by itself, tasks keep their different means: a trial that went
    better than its values foresaw weighs more.
    """
    return standardise(advantages.T.unsqueeze(0), valid.T.unsqueeze(0)).squeeze(0).T


def _delayed(steps: Tensor) -> Tensor:
    """Those of the step before, (M, L, ...), zeros in the first step."""
    return torch.cat([torch.zeros_like(steps[:, :1]), steps[:, :-1]], dim=1)
