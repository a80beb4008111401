"""Sampling: how many episodes a task gets, and the environments that they are played in."""

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from metarl.core.distributed import Processes
from metarl.core.parameters import Parameters
from metarl.core.randomness import RolloutKey
from metarl.core.settings import check_settings, setting
from metarl.core.validation import require
from metarl.rl.episodes import Episodes
from metarl.rl.rollout import Rollout
from metarl.rl.task_distribution import TaskDistribution, Tasks


@dataclass(frozen=True)
class Sampling:
    """The size of a meta-batch."""

    num_tasks: int = setting(20, "tasks in a meta-batch, M", at_least=1)
    episodes_per_task: int = setting(
        20, "episodes per task, before and after each inner step or in a trial, E", at_least=1
    )
    budget: str = setting(
        "episodes",
        "what the number of episodes counts: episodes; or the steps of that many at full length, so that a task whose "
        "episodes end early gets more of them",
        choices=("episodes", "steps"),
        source="paper; its code counted steps",
    )
    lanes: int = setting(
        0,
        "most environments of a rollout in each process, 0 for one per episode; with fewer the episodes are played in "
        "rounds, and are the same",
        at_least=0,
        changeable=True,
    )

    def __post_init__(self) -> None:
        check_settings(self)


class Lanes:
    """The environments of a task distribution, by number of lanes; built when first needed, closed by `close`.

    Args:
        task_distribution: makes them.
        threads: that step the physics.
        most: lanes of a batch; 0 for as many as there are episodes.
    """

    def __init__(self, task_distribution: TaskDistribution, threads: int, most: int = 0):
        self._task_distribution, self._threads, self._most = task_distribution, threads, most
        self._envs: dict[int, VectorEnv] = {}
        self._process = os.getpid()
        self._of_parent: dict[int, VectorEnv] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_envs": {}, "_of_parent": {}}  # a copy opens environments of its own

    def for_episodes(self, num_tasks: int, episodes_per_task: int) -> VectorEnv:
        """A batch that plays M x E episodes, in equal rounds of as many lanes as are allowed."""
        most = self._most or num_tasks * episodes_per_task
        tasks_at_once = _largest_divisor(num_tasks, max(1, most // episodes_per_task))
        return self.of(tasks_at_once * _largest_divisor(episodes_per_task, most))

    def of(self, num_envs: int) -> VectorEnv:
        """A batch of so many lanes; ValueError if the distribution makes another number.

        A process that was forked opens environments of its own: it has no threads and no child processes of those of
        its parent. It must not close them either, so it keeps them.
        """
        if (process := os.getpid()) != self._process:
            self._process, self._of_parent, self._envs = process, self._envs, {}
        if num_envs not in self._envs:
            envs = self._task_distribution.make(num_envs, self._threads)
            require(envs.num_envs == num_envs, f"lanes of make({num_envs})", envs.num_envs, str(num_envs))
            self._envs[num_envs] = envs
        return self._envs[num_envs]

    def close(self) -> None:
        """Close the environments; they are built again when they are needed."""
        while self._envs and os.getpid() == self._process:
            self._envs.popitem()[1].close()


@dataclass(frozen=True)
class Sampler:
    """Samples the episodes of tasks; all that is constant in a run is bound here.

    Attributes:
        lanes: the environments.
        rollout: plays an episode in every lane.
        budget: as in `Sampling`.
    """

    lanes: Lanes
    rollout: Rollout
    budget: str = "episodes"

    def of(self, processes: Processes) -> "Sampler":
        """The same sampler, for tasks that these processes divide."""
        return replace(self, rollout=self.rollout.of(processes))

    def sample(self, parameters: Parameters, tasks: Tasks, episodes_per_task: int, key: RolloutKey) -> Episodes:
        """Play episodes of every task with its own parameters.

        With the budget `steps` a task gets as many whole episodes as it takes to have `episodes_per_task` times the
        horizon in valid steps; so did the code behind the MAML paper count.

        Args:
            parameters: of the policy, (M, ...).
            tasks: dict of arrays (M, ...).
            episodes_per_task: E.
            key: names the randomness.
        """
        envs = self.lanes.for_episodes(num_rows(tasks), episodes_per_task)
        episodes = self.rollout(envs, parameters, tasks, key, episodes_per_task)
        if self.budget == "episodes":
            return episodes
        env_steps, processes = episodes_per_task * self.rollout.horizon, self.rollout.processes
        while processes.all_reduce_max(int((episodes.lengths.sum(dim=1) < env_steps).any())):
            key = replace(key, first_episode=episodes.valid.shape[2])
            episodes = episodes.joined(self.rollout(envs, parameters, tasks, key, episodes_per_task))
        return episodes.up_to(env_steps, processes)


def _largest_divisor(number: int, most: int) -> int:
    return max(divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0)


def num_rows(tasks: Tasks) -> int:
    """M, the number of tasks; ValueError unless all arrays have as many rows."""
    if not isinstance(tasks, dict):
        raise ValueError(f"tasks = {tasks!r}; allowed: a dict of arrays, a row per task")
    rows = {name: np.shape(values)[:1] for name, values in tasks.items()}
    if not rows or () in rows.values() or len(set(rows.values())) > 1:
        raise ValueError(f"tasks = {tasks}; allowed: a dict of arrays, a row per task")
    return next(iter(rows.values()))[0]
