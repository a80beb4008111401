"""The contract between the library and environments, and what can be checked of it without playing an episode.

A *task* is a record of parameters: a goal, a velocity, a direction. M tasks are a dict of arrays, each with a leading
axis of M, which can be saved, printed and sliced. A *task distribution* samples them and makes batches of environments.
A *batch* is a `gymnasium.vector.VectorEnv` of N lanes, which is given its tasks at reset:

    observations, infos = batch.reset(seed=seeds, options={"tasks": tasks})
    observations, rewards, terminations, truncations, infos = batch.step(actions)

N is a multiple of M, and with E = N / M lane i serves task i // E, so the episodes of a task lie side by side. An
episode ends where a lane is terminated or truncated for the first time after a reset; what the lane does afterwards,
autoreset or not, is not looked at. The library reads from `infos`, where they are given:

    success       (N,) bool, the step reached the goal; an episode succeeds if one of its steps does
    blown_up      (N,) bool, the simulator gave up on the lane in this step, which must terminate it
    final_obs     (N,) the observation that ended an episode, where an autoreset has replaced it; None in other lanes
    final_info    the infos of the steps that ended episodes, where an autoreset has replaced them

`python -m metarl.check MODULE:OBJECT` says in plain words what is wrong with a task distribution.
"""

from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv

from metarl.core.randomness import keyed_generator
from metarl.rl.action_distributions import action_distribution_for

Tasks = dict[str, np.ndarray]

_NEEDED = ("sample", "make", "horizon", "observation_space", "action_space")  # by a learner
_RECORDED = ("name", "dynamics", "task_space")  # by the runs of experiments


class TaskDistribution(Protocol):
    """A family of tasks that share their spaces and their horizon; no base class is needed.

    Attributes:
        horizon: T, the most time steps of an episode.
        observation_space: of a lane; a `Box` of any shape.
        action_space: of a lane; a `Box` of floating-point numbers, or `Discrete`.

    Where the distribution has a method `sample_test` like `sample`, held-out tasks come from it; where it also has
    `sample_validation`, validation tasks come from that one.

    A learner needs no more. The runs of experiments also need the following, which `record_defects` checks:

        name          text, under which runs and results know the distribution, such as `navigation_2d`
        dynamics      text that results are marked with, such as `paper`, `gymnasium` or `own`
        task_space    dict of a `Box` per task parameter: shape and range of one task; `experiments/adapt.py` checks the
                      task that it is given by it
    """

    @property
    def horizon(self) -> int: ...

    @property
    def observation_space(self) -> gymnasium.Space: ...

    @property
    def action_space(self) -> gymnasium.Space: ...

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Return `count` tasks, a dict of arrays (count, ...), drawn with this generator alone."""
        ...

    def make(self, num_envs: int, threads: int = 1) -> VectorEnv:
        """Return a new batch of N lanes; `threads` is how many may step its physics, and changes no number."""
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
        action_distribution_for(distribution.action_space)
    except ValueError as error:
        defects.append(str(error))
    for name in ("sample", "sample_test", "sample_validation"):
        if not hasattr(distribution, name):
            continue
        try:
            tasks = getattr(distribution, name)(count, keyed_generator(0, "check/tasks"))
        except Exception as error:
            defects.append(f"{name}({count}) fails: {describe_error(error)}")
            continue
        defects += [f"{name}({count}) returned {wrong}" for wrong in _shape_defects(tasks, count)]
    return defects


def record_defects(distribution: Any, count: int) -> list[str]:
    """What the runs of experiments need and a distribution lacks, as far as sampling `count` tasks shows.

    `protocol_defects` must have found nothing.
    """
    kind, defects = type(distribution).__name__, []
    if missing := [name for name in _RECORDED if not hasattr(distribution, name)]:
        needed = ", ".join(_RECORDED)
        defects.append(f"the task distribution {kind} has no {', '.join(missing)}; runs of experiments need {needed}")
    for name in ("name", "dynamics"):
        if not isinstance(value := getattr(distribution, name, ""), str):
            defects.append(f"{name} = {value!r}; allowed: a text")
    space = getattr(distribution, "task_space", {})
    if not isinstance(space, dict) or not all(isinstance(box, Box) for box in space.values()):
        return [*defects, f"task_space = {space!r}; allowed: a dict of a Box per task parameter"]
    if hasattr(distribution, "task_space"):
        tasks = distribution.sample(count, keyed_generator(0, "check/tasks"))
        shapes, expected = (
            {name: of.shape[skip:] for name, of in its.items()} for its, skip in ((tasks, 1), (space, 0))
        )
        if shapes != expected:
            defects.append(f"task_space has parameters of shapes {expected}, sampled tasks {shapes}; allowed: the same")
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
