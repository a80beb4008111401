"""What a rollout returns, and the flat samples that learning uses.

Axes, everywhere in this package: M tasks, E episodes per task, T time steps, O observation size, A action size,
P distribution parameters, N = T * E samples per task.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from metarl.core.distributed import ALONE, Processes
from metarl.core.validation import require_one_of

WEIGHTINGS = ("timestep", "episode")

Record = TypeVar("Record", "Episodes", "Samples")


@dataclass(frozen=True)
class Episodes:
    """M x E episodes in lockstep; steps after the end of an episode are not valid and hold zeros.

    An episode without any valid step is absent: tasks may have different numbers of episodes.

    Attributes:
        observations: (M, T, E, O) the observation on which each action was chosen; images and the like keep their
            axes in the place of O, here and below.
        actions: (M, T, E, A) in the policy's range, or (M, T, E) where they are discrete.
        dist_params: (M, T, E, P) parameters of the distribution that each action was drawn from.
        log_probs: (M, T, E) of the actions at the time of sampling.
        rewards: (M, T, E), 0 where not valid.
        valid: (M, T, E) bool.
        terminated: (M, E) bool; False for an episode that the time limit cut.
        final_observations: (M, E, O) the observation after the last valid step.
        failed: (M, E) bool; episodes that the simulator gave up on.
        succeeded: (M, E) bool, episodes with a step of which the environment said `success`; None if it never says.
    """

    observations: Tensor
    actions: Tensor
    dist_params: Tensor
    log_probs: Tensor
    rewards: Tensor
    valid: Tensor
    terminated: Tensor
    final_observations: Tensor
    failed: Tensor
    succeeded: Tensor | None = None

    def of_tasks(self, task_slice: slice) -> "Episodes":
        """The episodes of some of the tasks."""
        return _map_tensors(self, lambda tensor: tensor[task_slice])

    def episode(self, number: int, num_trials: int) -> "Episodes":
        """One of the E episodes of every row, where `num_trials` rows belong to each task: M x num_trials episodes."""

        def of_tasks(name: str) -> Any:
            value = getattr(self, name)
            if value is None:
                return None
            one = value[:, number] if name in _TIMELESS else value[:, :, number]
            grouped = one.unflatten(0, (-1, num_trials))
            return grouped if name in _TIMELESS else grouped.transpose(1, 2)

        return replace(self, **{field.name: of_tasks(field.name) for field in fields(self)})

    def joined(self, others: "Episodes") -> "Episodes":
        """These episodes of M tasks followed by others of the same tasks."""
        time_steps = max(self.valid.shape[1], others.valid.shape[1])

        def join(name: str) -> Any:
            parts = [getattr(self, name), getattr(others, name)]
            if name == "succeeded" and any(part is not None for part in parts):
                known = (self.failed, others.failed)
                parts = [torch.zeros_like(of) if part is None else part for part, of in zip(parts, known, strict=True)]
            elif parts[0] is None:
                return None
            if name in _TIMELESS:
                return torch.cat(parts, dim=1)
            return torch.cat([_lengthened(part, time_steps) for part in parts], dim=2)

        return replace(self, **{field.name: join(field.name) for field in fields(self)})

    def up_to(self, env_steps: int, processes: Processes = ALONE) -> "Episodes":
        """The first episodes of every task, as many whole ones as it takes to have that many valid steps.

        E becomes the most that any task takes, in all processes.
        """
        kept = self.lengths.cumsum(dim=1) - self.lengths < env_steps
        count = processes.all_reduce_max(int(kept.sum(dim=1).max()))

        def first(name: str) -> Any:
            value = getattr(self, name)
            if value is None:
                return None
            return value[:, :count] if name in _TIMELESS else value[:, :, :count]

        shortened = replace(self, **{field.name: first(field.name) for field in fields(self)})
        kept = kept[:, :count]
        return replace(
            shortened,
            rewards=torch.where(kept.unsqueeze(1), shortened.rewards, 0),
            valid=shortened.valid & kept.unsqueeze(1),
            failed=shortened.failed & kept,
            succeeded=None if shortened.succeeded is None else shortened.succeeded & kept,
        )

    def with_bonus(self, bonus: Tensor) -> "Episodes":
        """The same episodes with `bonus`, (M, T, E), added to the rewards of all valid steps."""
        return replace(self, rewards=torch.where(self.valid, self.rewards + bonus, 0))

    @property
    def returns(self) -> Tensor:
        """Undiscounted return of every episode, (M, E); 0 of an absent one."""
        return self.rewards.sum(dim=1)

    @property
    def mean_returns(self) -> Tensor:
        """Undiscounted return averaged over the episodes of each task, (M,)."""
        return self._mean_over_episodes(self.returns)

    @property
    def success_rates(self) -> Tensor:
        """Share of each task's episodes that succeeded, (M,); 0 where the environment has not told of any."""
        succeeded = torch.zeros_like(self.failed) if self.succeeded is None else self.succeeded
        return self._mean_over_episodes(succeeded.double())

    @property
    def failure_rates(self) -> Tensor:
        """Share of each task's episodes that the simulator gave up on, (M,)."""
        return self._mean_over_episodes(self.failed.double())

    def _mean_over_episodes(self, values: Tensor) -> Tensor:
        """Mean over the episodes of each task, (M,), of values (M, E) that are 0 of absent ones."""
        return values.sum(dim=1) / self.valid.any(dim=1).sum(dim=1)

    @property
    def lengths(self) -> Tensor:
        """Number of valid steps of every episode, (M, E)."""
        return self.valid.sum(dim=1)

    @property
    def env_steps(self) -> int:
        """Number of environment steps, which is that of valid steps."""
        return int(self.valid.sum())


_TIMELESS = ("terminated", "final_observations", "failed", "succeeded")


@dataclass(frozen=True)
class Samples:
    """The N steps of every task, with what the losses need; N = T * E, or fewer once `packed`.

    Attributes:
        observations: (M, N, O).
        actions: (M, N, A) or (M, N).
        dist_params: (M, N, P) at the time of sampling.
        log_probs: (M, N) at the time of sampling.
        advantages: (M, N).
        weights: (M, N), 0 for steps that are not valid; they sum to 1 for every task.
        time_steps: T if the samples are whole episodes, sample t * E + e being time step t of episode e; else None.
    """

    observations: Tensor
    actions: Tensor
    dist_params: Tensor
    log_probs: Tensor
    advantages: Tensor
    weights: Tensor
    time_steps: int | None = None

    def of_tasks(self, task_slice: slice) -> "Samples":
        """The samples of some of the tasks."""
        return _map_tensors(self, lambda tensor: tensor[task_slice])

    def packed(self, processes: Processes = ALONE) -> "Samples":
        """The samples without most of those of weight 0: N is the most that a task, of any process, has of others."""
        weighted = self.weights > 0
        count = processes.all_reduce_max(int(weighted.sum(dim=1).max()))
        if count == weighted.shape[1]:
            return self
        order = (~weighted).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
        rows = torch.arange(len(order), device=order.device).unsqueeze(1)
        return replace(_map_tensors(self, lambda tensor: tensor[rows, order]), time_steps=None)

    def at(self, positions: Tensor) -> "Samples":
        """The samples at some of the N positions, the same for all tasks, with weights that again sum to 1."""
        chosen = _map_tensors(self, lambda tensor: tensor[:, positions])
        total = chosen.weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(self.weights.dtype).tiny)
        return replace(chosen, weights=chosen.weights / total, time_steps=None)

    def of_episodes(self, episodes: Tensor) -> "Samples":
        """All samples of some of the E episodes, the same for all tasks, with weights that again sum to 1."""
        if self.time_steps is None:
            raise ValueError("these samples are single steps; allowed: samples of whole episodes")
        per_step = self.weights.shape[1] // self.time_steps  # E
        starts = torch.arange(self.time_steps, device=episodes.device).unsqueeze(1) * per_step
        return replace(self.at((starts + episodes).flatten()), time_steps=self.time_steps)


def to_samples(episodes: Episodes, advantages: Tensor, weighting: str = "timestep") -> Samples:
    """Flatten episodes (M, T, E, ...) to samples (M, T * E, ...).

    Args:
        episodes: a rollout.
        advantages: (M, T, E).
        weighting: `timestep`: every valid step of a task weighs the same; `episode`: every episode weighs the same,
            so that the steps of a short one weigh more.
    """
    require_one_of(WEIGHTINGS, "weighting", weighting)
    valid = episodes.valid.to(advantages.dtype)
    if weighting == "episode":
        valid = valid / valid.sum(dim=1, keepdim=True).clamp_min(1)
    weights = valid / valid.sum(dim=(1, 2), keepdim=True)
    return Samples(
        observations=episodes.observations.flatten(1, 2),
        actions=episodes.actions.flatten(1, 2),
        dist_params=episodes.dist_params.flatten(1, 2),
        log_probs=episodes.log_probs.flatten(1, 2),
        advantages=advantages.flatten(1, 2),
        weights=weights.flatten(1, 2),
        time_steps=advantages.shape[1],
    )


def _lengthened(values: Tensor, time_steps: int) -> Tensor:
    """Zeros appended along the time axis, (M, T, ...) to (M, time_steps, ...)."""
    missing = values.new_zeros(len(values), time_steps - values.shape[1], *values.shape[2:])
    return torch.cat([values, missing], dim=1)


def _map_tensors(record: Record, function: Callable[[Tensor], Tensor]) -> Record:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    changed: dict[str, Any] = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(record, **changed)
