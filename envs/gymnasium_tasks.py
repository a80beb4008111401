"""Tasks on any gymnasium environment: `GymnasiumTasks("CartPole-v1", sample, set_task)`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv

from .tasks import Tasks
from .vector_tasks import Sampler, VectorTasks, described, kind, refuse_state

Task = dict[str, Any]

_TRIED = 20  # tasks that a new distribution sets, resets and steps before anything is trained on it


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
        sample_validation: Sampler | None = None,
    ):
        """Try the environment, the samplers, and the setter on 20 tasks of each.

        Args:
            env: id of a registered environment, or a function that makes an environment.
            sample: draws training tasks.
            set_task: sets a task, before each reset of the environment.
            horizon: T, the most steps of an episode; None takes the environment's own limit.
            sample_test: draws test tasks, where training must not see them.
            sample_validation: draws validation tasks, where they are neither training nor test tasks.

        Raises:
            ValueError: in one line, what of these cannot be used, and for a setter, for which task.
        """
        if isinstance(env, gymnasium.Env):
            raise ValueError(f"env is {kind(env)} itself; allowed: an id, or a function that makes a new one")
        self.make_env, self.set_task = partial(_make, env, horizon), set_task
        trial = self.make_env()
        try:
            _check_new(trial, self.make_env(), _name(env))
            limit = horizon or getattr(trial.spec, "max_episode_steps", None)
            if limit is None:
                raise ValueError(f"{_name(env)} has no time limit of its own; allowed: with horizon")
            super().__init__(self._lanes, sample, self._set_lanes, limit, sample_test, _name(env), sample_validation)
            for sampler in dict.fromkeys((sample, sample_test or sample, sample_validation or sample)):
                tasks = self._sample(sampler, _TRIED, np.random.default_rng(0))
                for number in range(_TRIED):
                    self._set(trial, {name: values[number] for name, values in tasks.items()}, number)
                    _try(trial, self.name, number)
        finally:
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
            raise ValueError(f"set_task fails for the task {values}, of lane {number}: {described(error)}") from error


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


def _check_new(one: gymnasium.Env, other: gymnasium.Env, name: str) -> None:
    """ValueError if two calls have made the same environment; closes the second one."""
    if one.unwrapped is other.unwrapped:
        raise ValueError(f"{name} made the same environment twice; allowed: a new one at every call")
    other.close()


def _try(env: gymnasium.Env, name: str, number: int) -> None:
    """Reset with a seed and take one step, as training does; ValueError in plain words for what fails."""
    try:
        observation, _ = env.reset(seed=number, options={})
    except Exception as error:  # user code may raise anything
        raise ValueError(f"{name} cannot be reset with a seed and options={{}}: {described(error)}") from error
    _check_observation(env, observation, name, "reset")
    env.action_space.seed(number)
    try:
        outcome = env.step(env.action_space.sample())
        _check_outcome(outcome, name)
    except Exception as error:  # user code may raise anything
        _check_outcome(_inner_step(env, number), name)  # wrappers would speak of unpacking
        raise ValueError(f"{name} cannot be stepped: {described(error)}") from error
    observation, reward, *ends, _ = outcome
    _check_observation(env, observation, name, "step")
    given = np.asarray(reward)
    if given.ndim or not np.issubdtype(given.dtype, np.number):
        raise ValueError(f"{name}: step returned the reward {reward!r}; allowed: one number")
    for what, value in zip(("terminated", "truncated"), ends, strict=True):
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name}: step returned {what} = {value!r}; allowed: True or False")


def _inner_step(env: gymnasium.Env, number: int) -> Any:
    """What the environment itself, without its wrappers, returns from a first step; None if that fails too."""
    try:
        env.unwrapped.reset(seed=number, options={})
        return env.unwrapped.step(env.action_space.sample())
    except Exception:  # user code may raise anything
        return None


def _check_outcome(outcome: Any, name: str) -> None:
    if isinstance(outcome, tuple) and len(outcome) != 5:
        raise ValueError(
            f"{name}: step returned {len(outcome)} values; allowed: 5 "
            "(observation, reward, terminated, truncated, info)"
        )


def _check_observation(env: gymnasium.Env, observation: Any, name: str, call: str) -> None:
    space = env.observation_space
    if isinstance(space, gymnasium.spaces.Box) and np.shape(observation) != space.shape:
        raise ValueError(
            f"{name}: {call} returned an observation of shape {np.shape(observation)}; allowed: {space.shape}, "
            "as its observation_space says"
        )


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
        raise ValueError(f"{_name(env)} made {kind(made)}; allowed: a gymnasium.Env")
    for method in ("reset", "step"):
        if getattr(type(made), method) is getattr(gymnasium.Env, method):
            raise ValueError(f"{kind(made)} has no {method}; needed: reset, step, observation_space, action_space")
    for space in ("observation_space", "action_space"):
        if not isinstance(getattr(made, space, None), gymnasium.Space):
            raise ValueError(f"{kind(made)} has no {space}; needed: reset, step, observation_space, action_space")
    refuse_state(made)
    own = getattr(made.spec, "max_episode_steps", None)
    if horizon and own and own < horizon:
        raise ValueError(f"horizon = {horizon}, but {_name(env)} ends after {own} steps; allowed: at most {own}")
    return gymnasium.wrappers.TimeLimit(made, horizon) if horizon else made


def _name(env: str | Callable[[], gymnasium.Env]) -> str:
    return env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)
