"""2D navigation: a point agent moves from the origin to a goal that it cannot observe."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from .tasks import TaskBatch, TaskDistribution, Tasks


class Navigation2D(TaskDistribution):
    """Goals drawn from U[-0.5, 0.5]^2 (Finn et al. 2017, section 5.3.1, as the authors' code has it).

    The observation is the position x, starting at the origin; x' = x + a with each component of the action a
    in [-0.1, 0.1]; the reward is -||x' - goal||. An episode ends when x' is within 0.01 of the goal in both
    components, or after `horizon` steps. The paper's text has the squared distance; its code and its numbers
    have the distance.
    """

    name = "navigation_2d"
    dynamics = "paper"

    def __init__(self, horizon: int = 100):
        self.horizon = horizon
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = Box(-0.1, 0.1, (2,), np.float64)
        self.task_space = {"goal": Box(-0.5, 0.5, (2,), np.float64)}

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw goals (count, 2), uniform over the square."""
        return {"goal": rng.uniform(-0.5, 0.5, (count, 2))}

    def make(self, num_envs: int, threads: int = 1) -> "NavigationBatch":
        """Build a batch; one array operation steps all lanes, so `threads` has no effect."""
        return NavigationBatch(self, num_envs)


class NavigationBatch(TaskBatch):
    """N points stepped by one array operation."""

    goal_tolerance = 0.01

    def reset_lanes(self, seeds: Sequence[int | None]) -> np.ndarray:
        """Put every point at the origin."""
        return np.zeros((self.num_envs, 2))

    def step_lanes(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move, then measure the distance to the goal."""
        positions = self.observations + actions
        offsets = positions - self.tasks["goal"]
        rewards = -np.sqrt(np.square(offsets).sum(axis=1))
        terminated = (np.abs(offsets) < self.goal_tolerance).all(axis=1)
        return positions, rewards, terminated, {}
