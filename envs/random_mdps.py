"""Random tabular decision processes, whose rewards and transitions the agent does not know."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

from .tasks import TaskBatch, TaskDistribution, Tasks


class RandomMDPs(TaskDistribution):
    """Decision processes of S states and A actions, drawn from the prior of Duan et al. (2016), section 3.2.

    Action a in state s pays r ~ N(mu(s, a), 1), with mu(s, a) ~ N(1, 1) for each pair, and leads to a state drawn from
    P(s, a), a flat Dirichlet distribution over the S states. An episode begins in state 0 and has `horizon` steps. The
    observation is the state, one-hot.
    """

    name = "random_mdps"
    dynamics = "own"

    def __init__(self, states: int = 10, actions: int = 5, horizon: int = 10):
        """Define decision processes.

        Args:
            states: S, at least 2.
            actions: A, at least 2.
            horizon: steps of an episode, T.
        """
        for name, value in (("states", states), ("actions", actions)):
            if value < 2:
                raise ValueError(f"{name} = {value}; allowed: at least 2")
        self.horizon = horizon
        self.observation_space = Box(0.0, 1.0, (states,), np.float64)
        self.action_space = Discrete(actions)
        self.task_space = {
            "mean_rewards": Box(-np.inf, np.inf, (states, actions), np.float64),
            "transitions": Box(0.0, 1.0, (states, actions, states), np.float64),
        }

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw mean rewards (count, S, A) and the probabilities (count, S, A, S) of the next states."""
        shape = self.task_space["mean_rewards"].shape
        return {
            "mean_rewards": rng.normal(1.0, 1.0, (count, *shape)),
            "transitions": rng.dirichlet(np.ones(shape[0]), (count, *shape)),
        }

    def make(self, num_envs: int, threads: int = 1) -> "RandomMDPBatch":
        """Build a batch; one array operation steps all lanes, so `threads` has no effect."""
        return RandomMDPBatch(self, num_envs)


class RandomMDPBatch(TaskBatch):
    """N decision processes stepped by one array operation.

    The numbers that a lane's rewards and transitions are made of depend on its seed and the time step alone.
    """

    def reset_lanes(self, seeds: Sequence[int | None]) -> np.ndarray:
        """Put every lane in state 0, and draw the noise of its episode; ValueError for probabilities that are none."""
        totals = self.tasks["transitions"].sum(axis=-1)
        if not np.allclose(totals, 1.0):
            lane, state, action = np.argwhere(~np.isclose(totals, 1.0))[0]
            raise ValueError(
                f"transitions[{state}, {action}] of lane {lane} sum to {totals[lane, state, action]:g}; allowed: 1"
            )
        self._cumulated = self.tasks["transitions"].cumsum(axis=-1)[..., :-1]
        generators = [np.random.default_rng(seed) for seed in seeds]
        self._noise = np.stack([rng.standard_normal(self.distribution.horizon) for rng in generators])
        self._draws = np.stack([rng.random(self.distribution.horizon) for rng in generators])
        self._states = np.zeros(self.num_envs, int)
        return self._one_hot()

    def step_lanes(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Pay, and move to the next states."""
        here = (np.arange(self.num_envs), self._states, actions)
        rewards = self.tasks["mean_rewards"][here] + self._noise[:, self.elapsed_steps]
        self._states = (self._cumulated[here] <= self._draws[:, self.elapsed_steps, None]).sum(axis=-1)
        return self._one_hot(), rewards, np.zeros(self.num_envs, bool), {}

    def _one_hot(self) -> np.ndarray:
        return np.eye(self.tasks["transitions"].shape[-1])[self._states]
