"""Tasks on environments of your own: a sampler and a setter on gymnasium's environments, or on a vector environment.

    GymnasiumTasks("CartPole-v1", sample, set_task)     any gymnasium environment, by its id or by what makes it
    VectorTasks(make_batch, sample, set_tasks, 200)     anybody's `gymnasium.vector.VectorEnv`

A sampler is a function of a number M and a generator that returns M tasks, a dict of arrays (M, ...).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import FlattenObservation

from .tasks import TaskDistribution, Tasks, check_tasks, tasks_of_lanes

Sampler = Callable[[int, np.random.Generator], Tasks]
Task = dict[str, Any]

_TRIED = 20  # tasks that a new distribution sets and resets before anything is trained on it


def choose_from(tasks: Tasks) -> Sampler:
    """A sampler of a finite set of tasks (M, ...): in random order, none again before all have been drawn.

    ValueError if they are none, or if their arrays differ in length.
    """
    lengths = {name: len(values) for name, values in tasks.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"tasks with rows {lengths}; allowed: as many in all arrays, at least 1")
    size = next(iter(lengths.values()))

    def sample(count: int, rng: np.random.Generator) -> Tasks:
        rounds = [rng.permutation(size) for _ in range(-(-count // size))]
        chosen = np.concatenate(rounds)[:count]
        return {name: np.asarray(values)[chosen] for name, values in tasks.items()}

    return sample


class VectorTasks(TaskDistribution):
    """Tasks on anybody's vector environment.

    Observations that are no `Box` are flattened to one, as `gymnasium.spaces.flatten` does: the parts of a `Dict` side
    by side, a `Discrete` as one of n. An array of any shape, such as an image, stays as it is. The batch's autoreset
    mode may be NEXT_STEP or SAME_STEP; DISABLED only if lanes that have ended may still be stepped.

    Attributes:
        make_batch: builds a batch of N lanes.
        set_tasks: gives a batch the tasks of its N lanes, a dict of arrays (N, ...), before each of its resets.
        sample_test: draws the test tasks; where it is not given, they come from `sample` like the training tasks.
    """

    dynamics = "own"

    def __init__(
        self,
        make_batch: Callable[[int], VectorEnv],
        sample: Sampler,
        set_tasks: Callable[[Any, Tasks], None],
        horizon: int,
        sample_test: Sampler | None = None,
        name: str = "own",
    ):
        """Try the sampler; ValueError for one that does not give what it should, and for unsupported spaces."""
        self.make_batch, self.sampler, self.set_tasks = make_batch, sample, set_tasks
        self.horizon, self.name = horizon, name
        first = _draw(sample, 2, np.random.default_rng(0))
        self.task_space = {key: Box(-np.inf, np.inf, values.shape[1:], np.float64) for key, values in first.items()}
        if sample_test is not None:
            self.sample_test = partial(self._sample, sample_test)
            self.sample_test(2, np.random.default_rng(0))
        batch = make_batch(1)
        if not isinstance(batch, VectorEnv):
            raise ValueError(f"make_batch returned {_kind(batch)}; allowed: a gymnasium.vector.VectorEnv")
        space = batch.single_observation_space
        flat = space if isinstance(space, Box) else gymnasium.spaces.flatten_space(space)
        if not isinstance(flat, Box):
            raise ValueError(
                f"observation space {space} is not supported; allowed: Box, Discrete, MultiDiscrete, MultiBinary, "
                "and Tuple and Dict of these"
            )
        self.observation_space, self.action_space = flat, batch.single_action_space
        batch.close()

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw training tasks; ValueError if the sampler does not give as many as it should, all of one shape."""
        return self._sample(self.sampler, count, rng)

    def make(self, num_envs: int, threads: int = 1) -> "VectorTasksBatch":
        """Build a batch; `threads` has no effect, for the environments are stepped by whoever made them."""
        return VectorTasksBatch(self, self.make_batch(num_envs))

    def _sample(self, sampler: Sampler, count: int, rng: np.random.Generator) -> Tasks:
        tasks = _draw(sampler, count, rng)
        check_tasks(tasks, self.task_space)
        return tasks


class VectorTasksBatch(gymnasium.vector.VectorWrapper):
    """Gives a vector environment its tasks before each reset, and truncates what still runs at the horizon.

    Attributes:
        tasks: the parameters of every lane, a dict of arrays (N, ...).
        elapsed: steps since the last reset.
    """

    def __init__(self, distribution: VectorTasks, lanes: VectorEnv):
        super().__init__(lanes if isinstance(lanes.single_observation_space, Box) else FlattenObservation(lanes))
        self.distribution, self.lanes = distribution, lanes
        self.tasks: Tasks = {}
        self.elapsed = 0

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode in every lane.

        Args:
            seed: as the vector environment takes it: one number, one per lane, or None.
            options: `{"tasks": tasks}` with M tasks, N a multiple of M; without tasks the lanes keep theirs. Further
                options go to the environments.

        Raises:
            ValueError: tasks that do not fit the distribution or the lanes, or none so far; a setter that raises.
        """
        others = dict(options or {})
        tasks = others.pop("tasks", None)
        if tasks is not None:
            self.tasks = tasks_of_lanes(tasks, self.distribution.task_space, self.num_envs)
        if not self.tasks:
            raise ValueError("the lanes have no tasks; allowed: a first reset with options={'tasks': ...}")
        try:
            self.distribution.set_tasks(self.lanes, self.tasks)
        except ValueError:
            raise
        except Exception as error:  # whatever a stranger's setter does
            raise ValueError(f"set_tasks fails: {_described(error)}") from error
        self.elapsed = 0
        return self.env.reset(seed=seed, options=others)

    def step(self, actions: Any) -> tuple[np.ndarray, Any, Any, Any, dict[str, Any]]:
        """Step; at the horizon a lane that has not ended is truncated, and its observation is its last."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        self.elapsed += 1
        if self.elapsed == self.distribution.horizon:
            cut = ~(terminations | truncations)
            truncations = truncations | cut
            if self.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP:
                given, finals = infos.get("final_obs", [None] * self.num_envs), np.empty(self.num_envs, object)
                for lane in range(self.num_envs):
                    finals[lane] = observations[lane] if cut[lane] else given[lane]
                infos = {**infos, "final_obs": finals}
        return observations, rewards, terminations, truncations, infos


class GymnasiumTasks(VectorTasks):
    """Tasks on any gymnasium environment, stepped in this process by gymnasium's own `SyncVectorEnv`.

    Attributes:
        make_env: builds one environment.
        set_task: changes an environment, given without its wrappers, to a task, given as a dict of numbers and arrays.
    """

    dynamics = "gymnasium"

    def __init__(
        self,
        env: str | Callable[[], gymnasium.Env],
        sample: Sampler,
        set_task: Callable[[Any, Task], None],
        horizon: int | None = None,
        sample_test: Sampler | None = None,
    ):
        """Try the environment, the samplers, and the setter on 20 tasks of each.

        Args:
            env: id of a registered environment, or a function that makes an environment.
            sample: draws training tasks.
            set_task: sets a task, before each reset of the environment.
            horizon: T, the most steps of an episode; None takes the environment's own limit.
            sample_test: draws test tasks, where training must not see them.

        Raises:
            ValueError: in one line, what of these cannot be used, and for a setter, for which task.
        """
        self.make_env, self.set_task = partial(_make, env, horizon), set_task
        trial = self.make_env()
        limit = horizon or getattr(trial.spec, "max_episode_steps", None)
        if limit is None:
            raise ValueError(f"{_name(env)} has no time limit of its own; allowed: with horizon")
        super().__init__(self._lanes, sample, self._set_lanes, limit, sample_test, _name(env))
        for sampler in dict.fromkeys((sample, sample_test or sample)):
            tasks = self._sample(sampler, _TRIED, np.random.default_rng(0))
            for number in range(_TRIED):
                self._set(trial, {name: values[number] for name, values in tasks.items()}, number)
                try:
                    trial.reset(seed=number)
                except Exception as error:  # whatever a stranger's environment does
                    raise ValueError(f"{self.name} cannot be reset with a seed: {_described(error)}") from error
        trial.close()

    def _lanes(self, num_envs: int) -> SyncVectorEnv:
        return SyncVectorEnv([lambda: Lane(self.make_env(disable_env_checker=True))] * num_envs)

    def _set_lanes(self, batch: SyncVectorEnv, tasks: Tasks) -> None:
        for number, env in enumerate(batch.envs):
            self._set(env, {name: values[number] for name, values in tasks.items()}, number)

    def _set(self, env: gymnasium.Env, task: Task, number: int) -> None:
        try:
            self.set_task(env.unwrapped, task)
        except Exception as error:
            values = {name: np.asarray(value).tolist() for name, value in task.items()}
            raise ValueError(f"set_task fails for the task {values}, of lane {number}: {_described(error)}") from error


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class Lane(gymnasium.Wrapper):
    """An environment that waits once its episode has ended, where an autoreset would play another one in vain."""

    finished = True
    last: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; without options, as autoresets come, only repeat the last observation."""
        if options is None and self.finished:
            return self.last, {}
        self.finished = False
        self.last, infos = self.env.reset(seed=seed, options=options)
        return self.last, infos

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, or repeat the last observation with reward 0 after the end of the episode."""
        if self.finished:
            return self.last, 0.0, True, False, {}
        self.last, reward, terminated, truncated, infos = self.env.step(action)
        self.finished = terminated or truncated
        return self.last, reward, terminated, truncated, infos


def _draw(sampler: Sampler, count: int, rng: np.random.Generator) -> Tasks:
    tasks = sampler(count, rng)
    if not isinstance(tasks, dict) or not tasks:
        raise ValueError(f"the sampler returned {_kind(tasks)}; allowed: a dict of arrays ({count}, ...)")
    tasks = {name: np.asarray(values) for name, values in tasks.items()}
    for name, values in tasks.items():
        if values.shape[:1] != (count,) or values.dtype.kind not in "biuf":
            raise ValueError(
                f"the sampler returned {name!r} with shape {values.shape} of {values.dtype}; "
                f"allowed for {count} tasks: ({count}, ...) of numbers"
            )
    return tasks


def _make(
    env: str | Callable[[], gymnasium.Env], horizon: int | None, disable_env_checker: bool = False
) -> gymnasium.Env:
    if isinstance(env, str):
        try:
            return gymnasium.make(env, max_episode_steps=horizon, disable_env_checker=disable_env_checker)
        except gymnasium.error.Error as error:
            raise ValueError(f"{env}: {' '.join(str(error).split())}") from error
    made = env()
    if not isinstance(made, gymnasium.Env):
        raise ValueError(f"{_name(env)} made {_kind(made)}; allowed: a gymnasium.Env")
    for method in ("reset", "step"):
        if getattr(type(made), method) is getattr(gymnasium.Env, method):
            raise ValueError(f"{_kind(made)} has no {method}; needed: reset, step, observation_space, action_space")
    for space in ("observation_space", "action_space"):
        if not isinstance(getattr(made, space, None), gymnasium.Space):
            raise ValueError(f"{_kind(made)} has no {space}; needed: reset, step, observation_space, action_space")
    own = getattr(made.spec, "max_episode_steps", None)
    if horizon and own and own < horizon:
        raise ValueError(f"horizon = {horizon}, but {_name(env)} ends after {own} steps; allowed: at most {own}")
    return gymnasium.wrappers.TimeLimit(made, horizon) if horizon else made


def _name(env: str | Callable[[], gymnasium.Env]) -> str:
    return env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)


def _kind(thing: Any) -> str:
    return f"a {type(thing).__name__}"
