"""What the learner needs of a family of tasks, and what can be said of one without playing an episode."""

from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv

from metarl.core.randomness import keyed_generator
from metarl.rl.action_distributions import distribution_for

Tasks = dict[str, np.ndarray]

_NEEDED = ("sample", "make", "horizon", "observation_space", "action_space")


class TaskDistribution(Protocol):
    """What the learner needs of a family of tasks; the package `envs` documents it in full and has several."""

    @property
    def horizon(self) -> int: ...

    @property
    def observation_space(self) -> gymnasium.Space: ...

    @property
    def action_space(self) -> gymnasium.Space: ...

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw M tasks, a dict of arrays (M, ...)."""
        ...

    def make(self, num_envs: int, threads: int = 1) -> VectorEnv:
        """Build N lanes that take their tasks at `reset(options={"tasks": tasks})`."""
        ...


def protocol_defects(distribution: Any, count: int) -> list[str]:
    """What is missing or of the wrong kind, as far as sampling `count` tasks shows; see `metarl.check` for the rest."""
    if missing := [name for name in _NEEDED if not hasattr(distribution, name)]:
        kind = type(distribution).__name__
        return [f"the task distribution {kind} has no {', '.join(missing)}; needed: {', '.join(_NEEDED)}"]
    defects, horizon = [], distribution.horizon
    if isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1:
        defects.append(f"horizon = {horizon!r}; allowed: a whole number of steps, at least 1")
    if not isinstance(distribution.observation_space, Box):
        defects.append(
            f"observation space {distribution.observation_space} is not supported; allowed: Box "
            "(gymnasium.wrappers.vector.FlattenObservation makes one of others)"
        )
    try:
        distribution_for(distribution.action_space)
    except ValueError as error:
        defects.append(str(error))
    for name in ("sample", "sample_test"):
        if not hasattr(distribution, name):
            continue
        try:
            tasks = getattr(distribution, name)(count, keyed_generator(0, "check/tasks"))
        except Exception as error:
            defects.append(f"{name}({count}) fails: {describe_error(error)}")
            continue
        defects += [f"{name}({count}) returned {wrong}" for wrong in _shape_defects(tasks, count)]
    return defects


def _shape_defects(tasks: Any, count: int) -> list[str]:
    if not isinstance(tasks, dict) or not tasks:
        return [f"a {type(tasks).__name__}; allowed: a dict of arrays ({count}, ...)"]
    return [
        f"{name!r} {describe_array(values)}; allowed: ({count}, ...) of numbers"
        for name, values in tasks.items()
        if not isinstance(values, np.ndarray) or values.shape[:1] != (count,) or values.dtype.kind not in "biuf"
    ]


def describe_array(values: Any) -> str:
    """Shape and type of an array, or what is there instead of one."""
    return f"{values.shape} of {values.dtype}" if isinstance(values, np.ndarray) else f"as a {type(values).__name__}"


def describe_error(error: BaseException) -> str:
    """The kind of an error and its message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
