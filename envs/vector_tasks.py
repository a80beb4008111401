"""Tasks on anybody's vector environment: `VectorTasks(make_batch, sample, set_tasks, horizon)`.

A sampler is a function of a number M and a generator that returns M tasks, a dict of arrays (M, ...).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import FlattenObservation

from .tasks import TaskDistribution, Tasks, check_tasks, tasks_of_lanes

Sampler = Callable[[int, np.random.Generator], Tasks]

# wrappers whose running statistics a resumed run would lose, and which make a lane depend on others
_STATEFUL = ("NormalizeObservation", "NormalizeReward")


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
        sample_validation: draws the validation tasks; where it is not given, they come from where the test tasks do.
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
        sample_validation: Sampler | None = None,
    ):
        """Try the sampler; ValueError for one that does not give what it should, and for unsupported spaces."""
        self.make_batch, self.sampler, self.set_tasks = make_batch, sample, set_tasks
        self.horizon, self.name = horizon, name
        first = draw(sample, 2, np.random.default_rng(0))
        self.task_space = {key: Box(-np.inf, np.inf, values.shape[1:], np.float64) for key, values in first.items()}
        if sample_test is not None:
            self.sample_test = partial(self._sample, sample_test)
            self.sample_test(2, np.random.default_rng(0))
        if sample_validation is not None:
            self.sample_validation = partial(self._sample, sample_validation)
            self.sample_validation(2, np.random.default_rng(0))
        space, self.action_space = _spaces(make_batch)
        flat = space if isinstance(space, Box) else gymnasium.spaces.flatten_space(space)
        if not isinstance(flat, Box):
            raise ValueError(
                f"observation space {space} is not supported; allowed: Box, Discrete, MultiDiscrete, MultiBinary, "
                "and Tuple and Dict of these"
            )
        self.observation_space = flat

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw training tasks; ValueError if the sampler does not give as many as it should, all of one shape."""
        return self._sample(self.sampler, count, rng)

    def make(self, num_envs: int, threads: int = 1) -> "VectorTasksBatch":
        """Build a batch; `threads` has no effect, for the environments are stepped by whoever made them."""
        return VectorTasksBatch(self, self.make_batch(num_envs))

    def _sample(self, sampler: Sampler, count: int, rng: np.random.Generator) -> Tasks:
        tasks = draw(sampler, count, rng)
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
            raise ValueError(f"set_tasks fails: {described(error)}") from error
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


def _spaces(make_batch: Callable[[int], VectorEnv]) -> tuple[gymnasium.Space, gymnasium.Space]:
    """The spaces of what `make_batch` makes; ValueError unless it makes a new vector environment at every call."""
    if not callable(make_batch):
        raise ValueError(f"make_batch is {kind(make_batch)}; allowed: a function of the number of lanes")
    batches = [make_batch(1), make_batch(1)]
    try:
        for batch in batches:
            if not isinstance(batch, VectorEnv):
                raise ValueError(f"make_batch returned {kind(batch)}; allowed: a gymnasium.vector.VectorEnv")
            refuse_state(batch)
        if batches[0].unwrapped is batches[1].unwrapped:
            raise ValueError("make_batch returned the same vector environment twice; allowed: a new one at every call")
        return batches[0].single_observation_space, batches[0].single_action_space
    finally:
        for batch in {id(batch): batch for batch in batches if isinstance(batch, VectorEnv)}.values():
            batch.close()


def draw(sampler: Sampler, count: int, rng: np.random.Generator) -> Tasks:
    """M tasks of a sampler as arrays; ValueError if it gives something else."""
    tasks = sampler(count, rng)
    if not isinstance(tasks, dict) or not tasks:
        raise ValueError(f"the sampler returned {kind(tasks)}; allowed: a dict of arrays ({count}, ...)")
    tasks = {name: np.asarray(values) for name, values in tasks.items()}
    for name, values in tasks.items():
        if values.shape[:1] != (count,) or values.dtype.kind not in "biuf":
            raise ValueError(
                f"the sampler returned {name!r} with shape {values.shape} of {values.dtype}; "
                f"allowed for {count} tasks: ({count}, ...) of numbers"
            )
    return tasks


def described(error: Exception) -> str:
    """The kind of an error and its message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def kind(thing: Any) -> str:
    """The type of a thing, for messages."""
    return f"a {type(thing).__name__}"


def refuse_state(env: Any) -> None:
    """ValueError if an environment has a wrapper that carries state from one episode to the next."""
    while env is not None:
        if type(env).__name__ in _STATEFUL:
            raise ValueError(
                f"the environment has the wrapper {type(env).__name__}, whose statistics a resumed run would lose; "
                "allowed: environments without it (the learner standardises advantages itself)"
            )
        env = vars(env).get("env")
