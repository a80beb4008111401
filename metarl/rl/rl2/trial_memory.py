"""What trials carry from step to step: the policy's memory, and what the last action brought."""

from collections.abc import Callable

import torch
from torch import Tensor

from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.rl2.trials import step_inputs


class TrialMemory:
    """What is carried over the steps of M trials and over the ends of their episodes; new trials carry nothing.

    Attributes:
        memory: of the policy, (M, ...); None before the first step of the trials.
        actions: the last ones, as `ActionDistribution.encode` gives them, (M, A).
        rewards: that they brought, (M,).
        ended: 1 where they ended an episode, else 0, (M,).
    """

    def __init__(
        self,
        policy: Callable[..., tuple[Tensor, Tensor, Tensor]],
        action_distribution: ActionDistribution,
        count: int,
        device: torch.device | str,
    ):
        """Begin M = `count` trials.

        Args:
            policy: maps inputs (B, L, I) and a memory to distribution parameters, values and the next memory, see
                `metarl.rl.rl2.policies`.
            action_distribution: the family that the parameters belong to.
            count: M.
            device: of the policy.
        """
        self._policy, self._action_distribution = policy, action_distribution
        self.memory: Tensor | None = None
        self.actions = torch.zeros(count, action_distribution.encoded_size, device=device)
        self.rewards, self.ended = (torch.zeros(count, device=device) for _ in range(2))

    def see(self, observations: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step of the policy.

        Args:
            observations: (M, O).
            running: (M,) bool, the trials whose memory changes.

        Returns:
            distribution parameters (M, P), and values (M,).
        """
        inputs = step_inputs(observations, self.actions, self.rewards, self.ended)
        dist_params, values, memory = self._policy(inputs.unsqueeze(1), self.memory)
        if self.memory is not None and not running.all():
            memory = _where(running, memory, self.memory)
        self.memory = memory
        return dist_params.squeeze(1), values.squeeze(1)

    def keep(self, actions: Tensor, rewards: Tensor, ended: Tensor, running: Tensor) -> None:
        """Keep what a step brought for the next input.

        Args:
            actions: as the action distribution gives them, (M, A) or (M,).
            rewards: (M,).
            ended: (M,) bool.
            running: (M,) bool, the trials that took the step.
        """
        self.actions = _where(running, self._action_distribution.encode(actions), self.actions)
        self.rewards = _where(running, rewards.float(), self.rewards)
        self.ended = _where(running, ended.float(), self.ended)


def _where(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The new rows where chosen, (M,) bool, else the old ones."""
    return torch.where(chosen.view(-1, *[1] * (new.ndim - 1)), new, old)
