"""Meta-World's benchmarks ML1, ML10 and ML45 (Yu et al. 2020) as task distributions; they need the extra `meta-world`.

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

BENCHMARKS = ("ML1", "ML10", "ML45")


class MetaWorld(GymnasiumTasks):
    """Tasks of one benchmark: goals of one environment (ML1), or environments with their goals (ML10, ML45).

    A task is its number in the list of the 50 training tasks of each training environment, then the 50 test tasks of
    each test environment. Sampled tasks are spread evenly over the environments and stand in their order. An episode
    ends as the benchmark has it, by truncation after 500 steps, also where it succeeded before. The goal is hidden;
    objects, whose place is part of the task, are not.

    Attributes:
        benchmark: Meta-World's object.
        tasks: its training tasks, then its test tasks.
    """

    dynamics = "meta-world"

    def __init__(self, benchmark: str = "ML1", env: str = "reach-v3", seed: int = 0, horizon: int = 500):
        """Draw the benchmark's tasks, which takes Meta-World seconds for ML1 and minutes for ML45.

        Args:
            benchmark: ML1, ML10 or ML45.
            env: the environment of ML1; the others have their own.
            seed: of the benchmark's goals.
            horizon: T, at most 500.

        Raises:
            ValueError: an unknown benchmark or environment.
            ModuleNotFoundError: Meta-World is not installed.
        """
        import metaworld

        if benchmark not in BENCHMARKS:
            raise ValueError(f"benchmark = {benchmark!r}; allowed: {', '.join(BENCHMARKS)}")
        if benchmark == "ML1":
            if env not in metaworld.ML1.ENV_NAMES:
                near = difflib.get_close_matches(env, metaworld.ML1.ENV_NAMES, n=1, cutoff=0)[0]
                raise ValueError(f"env = {env!r}; allowed: Meta-World's 50 names; the nearest is {near}")
            self.benchmark = metaworld.ML1(env, seed=seed)
        else:
            self.benchmark = getattr(metaworld, benchmark)(seed=seed)
        train, test = self.benchmark.train_tasks, self.benchmark.test_tasks
        self.tasks = [*train, *test]
        classes = {**self.benchmark.train_classes, **self.benchmark.test_classes}
        waiting: dict[str, list[gymnasium.Env]] = {name: [] for name in classes}
        super().__init__(
            lambda: MetaWorldLane(classes, waiting),
            _evenly([task.env_name for task in train], 0),
            lambda lane, task: lane.set_task(self.tasks[int(task["task"])]),
            horizon,
            _evenly([task.env_name for task in test], len(train)),
        )
        self.name = f"{benchmark}-{env}" if benchmark == "ML1" else benchmark


class MetaWorldLane(gymnasium.Env):
    """One of a benchmark's environments, of the kind that the task asks for.

    Environments cost much to build. Those that no lane needs at the moment wait in a pool that all lanes share.
    """

    def __init__(self, classes: dict[str, Any], waiting: dict[str, list[Any]]):
        self.classes, self.waiting = classes, waiting
        self.name = next(iter(classes))
        self.env = self._take()
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

    def set_task(self, task: Any) -> None:
        """Become the task's kind of environment, with its goal."""
        if task.env_name != self.name:
            self.waiting[self.name].append(self.env)
            self.name = task.env_name
            self.env = self._take()
        self.env.set_task(task)

    def reset(self, *, seed: int | None = None, options: Task | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; the task alone decides how."""
        return self.env.reset()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step; of Meta-World's infos only `success` is kept."""
        observation, reward, terminated, truncated, infos = self.env.step(action)
        return observation, float(reward), terminated, truncated, {"success": bool(infos["success"])}

    def close(self) -> None:
        """Leave the environment to other lanes."""
        self.waiting[self.name].append(self.env)

    def _take(self) -> Any:
        free = self.waiting[self.name]
        return free.pop() if free else self.classes[self.name]()


def _evenly(names: list[str], first: int) -> Sampler:
    """A sampler of task numbers, of which the first is given, that takes as many of each environment as it can."""
    kinds = list(dict.fromkeys(names))
    of_kind = [choose_from({"task": first + np.flatnonzero(np.array(names) == kind)}) for kind in kinds]
    kind_sampler = choose_from({"kind": np.arange(len(kinds))})

    def sample(count: int, rng: np.random.Generator) -> Tasks:
        counts = np.bincount(kind_sampler(count, rng)["kind"], minlength=len(kinds))
        parts = [draw(int(number), rng)["task"] for draw, number in zip(of_kind, counts, strict=True) if number]
        return {"task": np.concatenate(parts)}

    return sample
