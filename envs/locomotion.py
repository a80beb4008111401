"""The tasks that moving bodies share: run in a direction, at a velocity, or to a place."""

from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box

from .mujoco_batch import MujocoTasks
from .tasks import Tasks


class Signs(Box):
    """The numbers -1 and +1."""

    def __init__(self) -> None:
        super().__init__(-1.0, 1.0, (), np.float64)

    def contains(self, x: Any) -> bool:
        return super().contains(x) and abs(float(x)) == 1.0

    def __repr__(self) -> str:
        return "-1.0 or 1.0"


class Direction(MujocoTasks):
    """Run forwards (+1) or backwards (-1), each with probability 0.5; the task's reward is direction * vx.

    Deviation: the paper's code draws every task by itself. Here directions alternate, for otherwise a small meta-batch
    holds more of one by chance and pulls the policy that way.
    """

    task_space = {"direction": Signs()}  # noqa: RUF012

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw directions (count,), -1 and +1 in turn; which one is first is chance."""
        return {"direction": rng.choice([-1.0, 1.0]) * (-1.0) ** np.arange(count)}

    def task_reward(self, position: np.ndarray, velocity: np.ndarray, tasks: Tasks) -> np.ndarray:
        """Return direction * vx, (N,)."""
        return tasks["direction"] * velocity[:, 0]


class Velocity(MujocoTasks):
    """Run at the velocity v ~ U[0, fastest] m/s; the task's reward is bonus - |vx - v|.

    Deviation: the paper's code draws every task by itself, as `sample_test` does. Here the velocities of a training
    meta-batch are spread evenly, for otherwise it holds more fast or more slow ones by chance and pulls the policy that
    way.

    Attributes:
        fastest: for each dynamics, the highest velocity.
        bonus: for each dynamics, a constant in the reward; falling over still pays where v is more than that away, see
            `metarl.Learner.survival_bonus`.
    """

    fastest: ClassVar[dict[str, float]]
    bonus: ClassVar[dict[str, float]]

    def __init__(self, dynamics: str = "paper", horizon: int = 200):
        super().__init__(dynamics, horizon)
        self.task_space = {"velocity": Box(0.0, self.fastest[dynamics], (), np.float64)}

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw velocities (count,) in m/s, one from each of `count` equal parts of the range, in random order."""
        return {"velocity": self.fastest[self.dynamics] * (rng.permutation(count) + rng.uniform(size=count)) / count}

    def sample_test(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw velocities (count,) in m/s, each from the whole range."""
        return {"velocity": rng.uniform(0.0, self.fastest[self.dynamics], count)}

    def task_reward(self, position: np.ndarray, velocity: np.ndarray, tasks: Tasks) -> np.ndarray:
        """Return bonus - |vx - v|, (N,)."""
        return self.bonus[self.dynamics] - np.abs(velocity[:, 0] - tasks["velocity"])


RADIUS = 3.0  # of the disc of goals, in metres


class Disc(Box):
    """The points of the plane that are at most `RADIUS` away from the origin."""

    def __init__(self) -> None:
        super().__init__(-RADIUS, RADIUS, (2,), np.float64)

    def contains(self, x: Any) -> bool:
        return super().contains(x) and bool(np.hypot(*x) <= RADIUS + 1e-9)  # points of the edge are rounded

    def __repr__(self) -> str:
        return f"a point at most {RADIUS} m from the origin"


class Goal(MujocoTasks):
    """Run to the goal g ~ U[-3, 3]^2 metres; the task's reward is bonus - |x - g|_1.

    With `peers` dynamics goals are uniform on the disc: g = 3 sqrt(u) (cos a, sin a), u ~ U[0, 1], a ~ U[0, 2 pi].

    Attributes:
        bonus: for each dynamics, a constant in the reward; falling over still pays where the goal is further away than
            that, see `metarl.Learner.survival_bonus`.
    """

    bonus: ClassVar[dict[str, float]]

    def __init__(self, dynamics: str = "paper", horizon: int = 200):
        super().__init__(dynamics, horizon)
        self.task_space = {"goal": Disc() if dynamics == "peers" else Box(-3.0, 3.0, (2,), np.float64)}

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw goals (count, 2) in metres."""
        if self.dynamics != "peers":
            return {"goal": rng.uniform(-3.0, 3.0, (count, 2))}
        radius, angle = RADIUS * np.sqrt(rng.uniform(size=count)), rng.uniform(0.0, 2 * np.pi, count)
        return {"goal": np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)}

    def task_reward(self, position: np.ndarray, velocity: np.ndarray, tasks: Tasks) -> np.ndarray:
        """Return bonus - |x - g|_1, (N,)."""
        return self.bonus[self.dynamics] - np.abs(position - tasks["goal"]).sum(axis=1)
