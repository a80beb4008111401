"""Bases of the task distributions of this package and of their batches of environments.

What a task, a task distribution and a batch are is the contract that `metarl.rl.task_distribution` writes down: tasks
are a dict of arrays (M, ...); a batch is a `gymnasium.vector.VectorEnv` of N lanes, N a multiple of M, that takes its
tasks at `reset(seed=seeds, options={"tasks": tasks})`, and lane i serves task i // (N / M).
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

Tasks = dict[str, np.ndarray]


class TaskDistribution(Protocol):
    """A family of tasks that share their spaces, their horizon and their dynamics.

    Attributes:
        name: the name under which runs and results know the distribution, such as `navigation_2d`.
        dynamics: `paper` (what the MAML paper's code simulated), `gymnasium` (gymnasium's environments), `peers` (what
            ProMP, PEARL and VariBAD simulate), or `own`.
        horizon: T, the number of steps after which an episode is truncated.
        observation_space, action_space: of a single lane.
        task_space: a `Box` per task parameter: shape and range of one task.
    """

    name: str
    dynamics: str
    horizon: int
    observation_space: gymnasium.spaces.Box
    action_space: gymnasium.Space
    task_space: dict[str, gymnasium.spaces.Box]

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw `count` tasks. Training and test tasks differ by the generator that the caller passes."""
        ...

    def make(self, num_envs: int, threads: int = 1) -> VectorEnv:
        """Build a batch of `num_envs` lanes, stepped by `threads` threads where physics takes time."""
        ...


def check_tasks(tasks: Tasks, task_space: dict[str, gymnasium.spaces.Box]) -> int:
    """Return M, the number of tasks, or raise ValueError with what is wrong and what is allowed."""
    if set(tasks) != set(task_space):
        raise ValueError(f"tasks have the parameters {sorted(tasks)}; allowed: exactly {sorted(task_space)}")
    counts = set()
    for name, space in task_space.items():
        values = np.asarray(tasks[name])
        if values.ndim != 1 + len(space.shape) or values.shape[1:] != space.shape:
            raise ValueError(f"task parameter {name!r} has shape {values.shape}; allowed: (M, *{space.shape})")
        for task, value in enumerate(values):
            if not space.contains(np.asarray(value)):
                raise ValueError(f"task parameter {name!r} of task {task} is {value}; allowed: {space}")
        counts.add(len(values))
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"task parameters have {sorted(counts)} rows; allowed: one positive number for all")
    return counts.pop()


def tasks_of_lanes(tasks: Tasks, task_space: dict[str, gymnasium.spaces.Box], lanes: int) -> Tasks:
    """Repeat each of M tasks for its E = N / M lanes, (M, ...) to (N, ...); ValueError for tasks that do not fit."""
    count = check_tasks(tasks, task_space)
    if lanes % count:
        raise ValueError(f"{count} tasks for {lanes} lanes; allowed: a divisor of the lanes")
    return {name: np.repeat(values, lanes // count, axis=0) for name, values in tasks.items()}


class TaskBatch(VectorEnv):
    """Base of the batches in this package: tasks, time limit and finished lanes, shared by all simulators.

    A simulator implements `reset_lanes` and `step_lanes`. There is no autoreset. A finished lane waits for
    the next reset: it repeats its last observation with reward 0 and stays terminated, so no step after the
    end of an episode can leak into another one.

    Attributes:
        tasks: the parameters of every lane, a dict of arrays (N, ...).
        finished: (N,) bool, lanes whose episode has ended.
        render_fps: pictures per second of a video in real time.
    """

    # gymnasium's attribute is an instance-wide dict by convention
    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012
    render_fps = 10

    def __init__(self, distribution: TaskDistribution, num_envs: int):
        if num_envs < 1:
            raise ValueError(f"num_envs = {num_envs}; allowed: at least 1")
        self.distribution = distribution
        self.num_envs = num_envs
        self.single_observation_space = distribution.observation_space
        self.single_action_space = distribution.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.tasks: Tasks = {}
        self.finished = np.ones(num_envs, bool)
        self.observations = np.zeros((num_envs, *distribution.observation_space.shape))
        self.elapsed_steps = 0

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start an episode in every lane.

        Args:
            seed: a seed per lane, or one number from which lane i takes seed + i, or None for fresh entropy.
            options: `{"tasks": tasks}` with M tasks, N a multiple of M. Without it the lanes keep their
                tasks, and at the first reset each lane draws its own from the distribution.

        Returns:
            observations (N, O) and an empty dict.

        Raises:
            ValueError: tasks that do not fit the distribution or the lanes; a wrong number of seeds.
        """
        seeds = self._lane_seeds(seed)
        tasks = (options or {}).get("tasks")
        if tasks is not None:
            self.tasks = tasks_of_lanes(tasks, self.distribution.task_space, self.num_envs)
        elif not self.tasks:
            # from generators of their own, so that a seed's initial state is the same with and without a draw
            drawn = [self.distribution.sample(1, np.random.default_rng(s).spawn(1)[0]) for s in seeds]
            self.tasks = {name: np.concatenate([task[name] for task in drawn]) for name in drawn[0]}
        self.finished = np.zeros(self.num_envs, bool)
        self.elapsed_steps = 0
        self.observations = self.reset_lanes(seeds)
        return self.observations.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance every unfinished lane by one step.

        Args:
            actions: (N, A), clipped to the action space; or (N,) whole numbers, where it is `Discrete`.

        Returns:
            observations (N, O), rewards, terminations, truncations (N,) each, and a dict of arrays (N, ...).

        Raises:
            ValueError: actions of the wrong shape, not finite, or not of a `Discrete` space.
        """
        was_finished = self.finished
        observations, rewards, terminated, infos = self.step_lanes(self._within_space(actions))
        if was_finished.any():
            observations[was_finished] = self.observations[was_finished]
            rewards = np.where(was_finished, 0.0, rewards)
            terminated = terminated | was_finished
        self.elapsed_steps += 1
        truncated = np.full(self.num_envs, self.elapsed_steps >= self.distribution.horizon)
        self.finished = terminated | truncated
        self.observations = observations
        return observations.copy(), rewards, terminated, truncated, infos

    def reset_lanes(self, seeds: Sequence[int | None]) -> np.ndarray:
        """Put every lane in an initial state drawn with its seed; return observations (N, O)."""
        raise NotImplementedError

    def step_lanes(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance the lanes; return observations, rewards, terminated, infos; anything for finished lanes."""
        raise NotImplementedError

    def render_lane(self, lane: int = 0) -> np.ndarray:
        """Return a picture (height, width, 3) uint8 of a lane."""
        raise RuntimeError(f"{self.distribution.name} has no pictures")

    def _within_space(self, actions: np.ndarray) -> np.ndarray:
        """Actions as `step_lanes` takes them: clipped, or for a `Discrete` space counted from 0; else ValueError."""
        space = self.distribution.action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            first, last = int(space.start), int(space.start + space.n) - 1
            actions = np.asarray(actions)
            self._require_actions(
                actions, np.isin(actions, range(first, last + 1)), f"a whole number, {first} to {last}"
            )
            return actions.astype(int) - first
        box = cast(gymnasium.spaces.Box, space)
        actions = np.asarray(actions, np.float64)
        self._require_actions(actions, np.isfinite(actions), "finite numbers")
        return np.clip(actions, box.low, box.high)

    def _require_actions(self, actions: np.ndarray, allowed: np.ndarray, words: str) -> None:
        """ValueError for actions of another shape, or that are not allowed, naming the first lane."""
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions have shape {actions.shape}; allowed: {self.action_space.shape}")
        if not allowed.all():
            lane = int(np.argwhere(~allowed)[0][0])
            raise ValueError(f"the action of lane {lane} is {actions[lane]}; allowed: {words}")

    def _lane_seeds(self, seed: int | Sequence[int] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        seeds = range(int(seed), int(seed) + self.num_envs) if isinstance(seed, int | np.integer) else seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} lanes; allowed: one number, or one per lane")
        return seeds


class SingleTaskEnv(gymnasium.Env):
    """One lane of a distribution's batch as an ordinary gymnasium environment.

    `reset(options={"task": {...}})` sets the task (parameters without the leading axis); without it the
    environment keeps its task, and the first reset draws one. `env.unwrapped.task` tells the task in force.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, distribution: TaskDistribution, render_mode: str | None = None):
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode = {render_mode!r}; allowed: None, 'rgb_array'")
        self.distribution = distribution
        self.batch = cast(TaskBatch, distribution.make(1))
        self.observation_space = distribution.observation_space
        self.action_space = distribution.action_space
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self.batch.render_fps}
        self.task: dict[str, np.ndarray] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode; see the class for how the task is chosen."""
        super().reset(seed=seed)
        if unknown := sorted(set(options or {}) - {"task"}):
            raise ValueError(f"options have {unknown[0]!r}; allowed: task, as in {{'task': {{...}}}}")
        if options:
            self.task = {name: np.asarray(value, np.float64) for name, value in options["task"].items()}
        elif self.task is None:
            self.task = {name: values[0] for name, values in self.distribution.sample(1, self.np_random).items()}
        lane_seed = int(self.np_random.integers(2**63))
        tasks = {name: value[None] for name, value in self.task.items()}
        observations, _ = self.batch.reset(seed=[lane_seed], options={"tasks": tasks})
        return observations[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one step, as the batch does."""
        observations, rewards, terminated, truncated, infos = self.batch.step(np.asarray(action)[None])
        info = {name: values[0] for name, values in infos.items()}
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:
        """Return a picture (height, width, 3) uint8 in the mode `rgb_array`, else None."""
        return self.batch.render_lane() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the batch that simulates this environment."""
        self.batch.close()
