"""Bernoulli bandits: arms that pay 1 with probabilities that the agent does not know."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

from .tasks import TaskBatch, TaskDistribution, Tasks


class BernoulliBandits(TaskDistribution):
    """Bandits of k arms with payoff probabilities p ~ U[0, 1]^k (Duan et al. 2016, section 3.1).

    Pulling arm i pays 1 with probability p_i, else 0. An episode has `horizon` pulls. The observation is always 1: all
    that an agent knows of a bandit are its own pulls and what they paid.
    """

    name = "bandits"
    dynamics = "own"

    def __init__(self, arms: int = 5, horizon: int = 10):
        """Define bandits.

        Args:
            arms: k, at least 2.
            horizon: pulls of an episode, T.
        """
        if arms < 2:
            raise ValueError(f"arms = {arms}; allowed: at least 2")
        self.horizon = horizon
        self.observation_space = Box(0.0, 1.0, (1,), np.float64)
        self.action_space = Discrete(arms)
        self.task_space = {"probabilities": Box(0.0, 1.0, (arms,), np.float64)}

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw payoff probabilities (count, k), uniform in [0, 1]."""
        return {"probabilities": rng.uniform(size=(count, int(self.action_space.n)))}

    def make(self, num_envs: int, threads: int = 1) -> "BanditBatch":
        """Build a batch; one array operation steps all lanes, so `threads` has no effect."""
        return BanditBatch(self, num_envs)


class BanditBatch(TaskBatch):
    """N bandits, pulled by one array operation.

    What a lane's pulls draw depends on its seed and the time step alone, not on which arms are pulled.
    """

    def reset_lanes(self, seeds: Sequence[int | None]) -> np.ndarray:
        """Draw the numbers, (N, T), that the payoffs of the episode will be compared with."""
        self._draws = np.stack([np.random.default_rng(seed).random(self.distribution.horizon) for seed in seeds])
        return np.ones((self.num_envs, 1))

    def step_lanes(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Pull one arm in each lane."""
        chances = self.tasks["probabilities"][np.arange(self.num_envs), actions]
        rewards = (self._draws[:, self.elapsed_steps] < chances).astype(np.float64)
        return np.ones((self.num_envs, 1)), rewards, np.zeros(self.num_envs, bool), {}
