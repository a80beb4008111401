"""Policies with a memory that act, and their files."""

import math
from typing import Any

import torch
from torch import Tensor

from metarl.core.ambient import in_standard_modes
from metarl.core.parameters import require_alike
from metarl.core.validation import require
from metarl.rl.agent import Agent
from metarl.rl.episodes import Episodes
from metarl.rl.rl2.policies import RECURRENT
from metarl.rl.rl2.trial_memory import TrialMemory

_CARRIED = ("actions", "rewards", "ended")


class RecurrentAgent(Agent):
    """A policy with fixed parameters and a memory, which it keeps over the episodes of one task.

        agent = learner.agent()
        observation, _ = env.reset()
        for _ in range(steps):
            observation, reward, terminated, truncated, _ = env.step(agent(observation, deterministic=False))
            agent.observe(reward, terminated or truncated)
            if terminated or truncated:
                observation, _ = env.reset()
        agent.begin_trial()  # the next task

    It must be told what every action brought before it acts again.

    Attributes:
        policy: with a memory, see `metarl.rl.rl2.policies`.
        parameters: of the policy.
        action_space: `Box` or `Discrete`.
        observation_shape: of one observation.
    """

    _known = RECURRENT

    @in_standard_modes
    def begin_trial(self) -> None:
        """Forget everything: the next observation is the first one of a new task."""
        self._trial = TrialMemory(self._call, self.action_distribution, 1, self._device)
        self._action: Tensor | None = None  # whose outcome is not known yet

    @in_standard_modes
    def observe(self, reward: float, ended: bool) -> None:
        """Tell what the last action brought, which the policy sees in its next step.

        Args:
            reward: of the environment.
            ended: whether the episode has ended, by termination or at a time limit.

        Raises:
            RuntimeError: there is no action whose outcome is unknown.
        """
        if self._action is None:
            raise RuntimeError("there is no action to observe the outcome of; allowed: after the agent has acted")
        rewards, ends = (torch.tensor([float(value)], device=self._device) for value in (reward, ended))
        self._trial.keep(self._action, rewards, ends, self._running)
        self._action = None

    @in_standard_modes
    @torch.no_grad()
    def remember(self, episodes: Episodes, task: int, number: int) -> None:
        """Go through an episode that has been played, as if the agent had played it.

        Args:
            episodes: M x E.
            task, number: which of them.
        """
        length = int(episodes.lengths[task, number])
        for step in range(length):
            at = (task, step, number)
            self._trial.see(episodes.observations[at].flatten().to(self._device)[None], self._running)
            self._action = episodes.actions[at].to(self._device)[None]
            self.observe(float(episodes.rewards[at]), step + 1 == length)

    def _act(self, observations: Tensor, deterministic: bool) -> Tensor:
        self._require_outcome()
        dist_params, _ = self._trial.see(observations.flatten(1), self._running)
        self._action = self._choose(dist_params, deterministic)
        return self._action

    def _require_outcome(self) -> None:
        """RuntimeError while it is not known what the last action brought."""
        if self._action is not None:
            raise RuntimeError("the outcome of the last action is not known; allowed: observe(reward, ended) first")

    @property
    def _running(self) -> Tensor:
        return torch.ones(1, dtype=torch.bool, device=self._device)

    def _to_data(self) -> dict[str, Any]:
        self._require_outcome()
        carried = {name: getattr(self._trial, name).cpu() for name in _CARRIED}
        if self._trial.memory is not None:
            carried["memory"] = self._trial.memory.cpu()
        return {**super()._to_data(), "carried": carried}

    @in_standard_modes
    @torch.no_grad()
    def _restore(self, state: dict[str, Any]) -> None:
        given: Any = state.get("carried")
        require(isinstance(given, dict), "carried", given, "a dict of tensors")
        names = [*_CARRIED, "memory"] if "memory" in given else _CARRIED
        if "memory" in given:  # take a step, after which there is one to compare with
            self._trial.see(torch.zeros(1, math.prod(self.observation_shape), device=self._device), self._running)
        require_alike("memory of a trial", given, {name: getattr(self._trial, name) for name in names})
        for name in names:
            setattr(self._trial, name, given[name].to(self._device))
