"""Meta-World's benchmarks ML1, ML10, ML25 and ML45 (Yu et al. 2020) as task distributions; the extra is `meta-world`.

Training and test tasks are those of the benchmark objects. The ids that Meta-World 3.1.1 registers with gymnasium are
not used: its `Meta-World/ML1-train` makes environments with the 50 test tasks, as its `Meta-World/ML1-test` does, for
both read a loop's variable after the loop has ended.
"""

import difflib
from typing import Any

import gymnasium
import numpy as np

from .gymnasium_tasks import GymnasiumTasks, Task
from .tasks import Tasks
from .vector_tasks import Sampler, choose_from

BENCHMARKS = ("ML1", "ML10", "ML25", "ML45")
REWARD_VERSIONS = ("v2", "v1")
GOALS = 50  # of each environment, in training and in test tasks


class MetaWorld(GymnasiumTasks):
    """Tasks of one benchmark: goals of one environment (ML1), or environments with their goals (ML10, ML25, ML45).

    A task is its number in the list of the 50 training tasks of each training environment, then the 50 test tasks of
    each test environment. Sampled tasks are spread evenly over the environments and stand in their order. An episode
    ends as the benchmark has it, by truncation after 500 steps, also where it succeeded before. The goal is hidden;
    objects, whose place is part of the task, are not.

    The last goals of each training environment are validation tasks, on which nothing is trained. ML25's test
    environments are not all new: basketball-v3 is among its training environments, too.

    Attributes:
        benchmark: Meta-World's object.
        tasks: its training tasks, then its test tasks.
        first_test: the number of the first test task.
    """

    dynamics = "meta-world"

    def __init__(
        self,
        benchmark: str = "ML1",
        env: str = "reach-v3",
        seed: int = 0,
        horizon: int = 500,
        reward_version: str = "v2",
        validation_goals: int = 10,
    ):
        """Draw the benchmark's tasks, which takes Meta-World seconds for ML1 and minutes for ML45.

        Args:
            benchmark: ML1, ML10, ML25 or ML45.
            env: the environment of ML1; the others have their own.
            seed: of the benchmark's goals.
            horizon: T, at most 500.
            reward_version: v2, between 0 and 10 at every step, or v1, of the first publication, without bounds. With v1
                hand-insert, peg-insert-side and stick-push never report success.
            validation_goals: of the 50 training goals of each environment, those that are validation tasks; with 0
                validation tasks are training tasks.

        Raises:
            ValueError: an unknown benchmark, environment or version, or no goal left to train on.
            ModuleNotFoundError: Meta-World is not installed.
        """
        import metaworld

        from .meta_world_simulator import Snapshots, faster

        if benchmark not in BENCHMARKS:
            raise ValueError(f"benchmark = {benchmark!r}; allowed: {', '.join(BENCHMARKS)}")
        if reward_version not in REWARD_VERSIONS:
            raise ValueError(f"reward_version = {reward_version!r}; allowed: {', '.join(REWARD_VERSIONS)}")
        if not 0 <= validation_goals < GOALS:
            raise ValueError(f"validation_goals = {validation_goals}; allowed: 0 to {GOALS - 1}")
        if benchmark == "ML1":
            if env not in metaworld.ML1.ENV_NAMES:
                near = difflib.get_close_matches(env, metaworld.ML1.ENV_NAMES, n=1, cutoff=0)[0]
                raise ValueError(f"env = {env!r}; allowed: Meta-World's 50 names; the nearest is {near}")
            self.benchmark = metaworld.ML1(env, seed=seed)
        else:
            self.benchmark = getattr(metaworld, benchmark)(seed=seed)
        train, test = self.benchmark.train_tasks, self.benchmark.test_tasks
        self.tasks, self.first_test = [*train, *test], len(train)
        classes = {**self.benchmark.train_classes, **self.benchmark.test_classes}
        pool = Pool({name: faster(cls) for name, cls in classes.items()}, Snapshots(), reward_version)
        goal = np.arange(len(train)) % (len(train) // len(self.benchmark.train_classes))  # of its environment
        kept_back = goal > goal[-1] - validation_goals
        training = self._evenly(np.flatnonzero(~kept_back))
        super().__init__(
            lambda: MetaWorldLane(pool),
            training,
            lambda lane, task: lane.set_task(self.tasks[int(task["task"])], int(task["task"])),
            horizon,
            self._evenly(self.first_test + np.arange(len(test))),
            self._evenly(np.flatnonzero(kept_back)) if validation_goals else training,
        )
        self.name = f"{benchmark}-{env}" if benchmark == "ML1" else benchmark

    def names(self, tasks: Tasks) -> list[str]:
        """The environment of each of some tasks."""
        return [self.tasks[int(number)].env_name for number in tasks["task"]]

    def _evenly(self, numbers: np.ndarray) -> Sampler:
        """A sampler of some of the task numbers that takes as many of each environment as it can."""
        names = np.array([self.tasks[number].env_name for number in numbers])
        kinds = list(dict.fromkeys(names.tolist()))
        of_kind = [choose_from({"task": numbers[names == kind]}) for kind in kinds]
        kind_sampler = choose_from({"kind": np.arange(len(kinds))})

        def sample(count: int, rng: np.random.Generator) -> Tasks:
            counts = np.bincount(kind_sampler(count, rng)["kind"], minlength=len(kinds))
            parts = [draw(int(number), rng)["task"] for draw, number in zip(of_kind, counts, strict=True) if number]
            return {"task": np.concatenate(parts)}

        return sample


class Pool:
    """The environments that no lane needs at the moment, and what all lanes share.

    Attributes:
        classes: of environments, by name.
        snapshots: of resets.
    """

    def __init__(self, classes: dict[str, Any], snapshots: Any, reward_version: str):
        self.classes, self.snapshots, self._reward_version = classes, snapshots, reward_version
        self._waiting: dict[str, list[Any]] = {name: [] for name in classes}

    def take(self, name: str) -> Any:
        """An environment of a class, a new one if none is waiting."""
        waiting = self._waiting[name]
        return waiting.pop() if waiting else self.classes[name](reward_function_version=self._reward_version)

    def leave(self, name: str, env: Any) -> None:
        """Hand an environment back."""
        self._waiting[name].append(env)


class MetaWorldLane(gymnasium.Env):
    """One of a benchmark's environments, of the kind that the task asks for."""

    def __init__(self, pool: Pool):
        self.pool = pool
        self.name = next(iter(pool.classes))
        self.env = pool.take(self.name)
        self.number = -1
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

    def set_task(self, task: Any, number: int) -> None:
        """Become the task's kind of environment, with its goal."""
        if task.env_name != self.name:
            self.pool.leave(self.name, self.env)
            self.name = task.env_name
            self.env = self.pool.take(self.name)
        self.number = number
        self.env.set_task(task)

    def reset(self, *, seed: int | None = None, options: Task | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; the task alone decides how."""
        return self.pool.snapshots.reset(self.env, self.number), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step; of Meta-World's infos only `success` is kept."""
        observation, reward, terminated, truncated, infos = self.env.step(action)
        return observation, float(reward), terminated, truncated, {"success": bool(infos["success"])}

    def close(self) -> None:
        """Leave the environment to other lanes."""
        self.pool.leave(self.name, self.env)
