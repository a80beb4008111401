"""Tasks that show themselves: the oracle of the MAML paper's figures sees the task's parameters."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from .tasks import TaskDistribution, Tasks


class ObservedTasks(TaskDistribution):
    """A task distribution whose observations end with the parameters of the task, in the order of their names.

    Only an upper bound for learners that must find the task out: it is never what is meant to be solved.
    """

    def __init__(self, distribution: TaskDistribution):
        """ValueError for observations that are no vectors, such as images."""
        shape = distribution.observation_space.shape
        if len(shape) != 1:
            raise ValueError(f"observations of shape {shape} cannot end with the task; allowed: vectors")
        self.distribution = distribution
        self.name, self.dynamics = distribution.name, distribution.dynamics
        self.horizon, self.action_space = distribution.horizon, distribution.action_space
        self.task_space = distribution.task_space
        for name in ("sample_test", "sample_validation"):
            if hasattr(distribution, name):
                setattr(self, name, getattr(distribution, name))
        space = distribution.observation_space
        extra = [distribution.task_space[name] for name in sorted(distribution.task_space)]
        low, high = (
            np.concatenate([getattr(space, side), *(getattr(box, side).reshape(-1) for box in extra)])
            for side in ("low", "high")
        )
        self.observation_space = Box(low, high, dtype=np.float64)

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw tasks as the distribution does."""
        return self.distribution.sample(count, rng)

    def make(self, num_envs: int, threads: int = 1) -> gymnasium.vector.VectorEnv:
        """Build the distribution's batch with longer observations."""
        return ObservedTaskBatch(self.distribution.make(num_envs, threads), self.observation_space)


class ObservedTaskBatch(gymnasium.vector.VectorWrapper):
    """Appends the task of each lane to its observation."""

    def __init__(self, batch: gymnasium.vector.VectorEnv, observation_space: Box):
        super().__init__(batch)
        self.single_observation_space = observation_space
        self.observation_space = gymnasium.vector.utils.batch_space(observation_space, batch.num_envs)
        self.parameters = np.zeros((batch.num_envs, 0))

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Reset, and note the tasks of the lanes."""
        observations, infos = self.env.reset(seed=seed, options=options)
        tasks = self.env.tasks  # type: ignore[attr-defined]  # of TaskBatch or VectorTasksBatch
        self.parameters = np.concatenate([tasks[name].reshape(self.num_envs, -1) for name in sorted(tasks)], axis=1)
        return self._append(observations), infos

    def step(self, actions: Any) -> tuple[np.ndarray, Any, Any, Any, dict[str, Any]]:
        """Step the environments, and append the tasks to their observations."""
        observations, *others, infos = self.env.step(actions)
        if "final_obs" in infos:
            finals = zip(infos["final_obs"], self.parameters, strict=True)
            longer = [None if final is None else np.concatenate([final, of]) for final, of in finals]
            infos = {**infos, "final_obs": np.array([*longer, None], dtype=object)[:-1]}
        return (self._append(observations), *others, infos)

    def _append(self, observations: np.ndarray) -> np.ndarray:
        return np.concatenate([observations, self.parameters], axis=1)
