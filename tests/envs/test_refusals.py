"""What is tried when a distribution is made is what training does, and what it cannot use is refused in one line."""

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.spaces import Box
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import NormalizeObservation, TimeLimit

from metarl.envs import GymnasiumTasks, VectorTasks


def draw_gravity(count, rng):
    return {"gravity": rng.uniform(5, 15, count)}


def set_gravity(env, task):
    env.g = float(task["gravity"])


class Walk(gymnasium.Env):
    """A number that actions change; subclasses break one part of the interface each."""

    observation_space = Box(-10, 10, (1,), np.float64)
    action_space = Box(-1, 1, (1,), np.float64)
    g = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = np.zeros(1)
        return self.position, {}

    def step(self, action):
        self.position = self.position + action
        return self.position, float(-self.position[0]), False, False, {}


class FourValues(Walk):
    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class ArrayReward(Walk):
    def step(self, action):
        observation, reward, *others = super().step(action)
        return observation, np.array([reward]), *others


class WrongShape(Walk):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3), {}


class WrongShapeLater(Walk):
    def step(self, action):
        _, *others = super().step(action)
        return np.zeros((1, 1)), *others


class NumberForTermination(Walk):
    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, 0, truncated, info


class NeedsOptions(Walk):
    """Takes its task from options, which a reset in training does not give."""

    def reset(self, *, seed=None, options=None):
        self.g = options["gravity"]
        return super().reset(seed=seed)


ONE = TimeLimit(PendulumEnv(), 20)
ONE_BATCH = SyncVectorEnv([lambda: TimeLimit(PendulumEnv(), 20)])


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: GymnasiumTasks(ONE, draw_gravity, set_gravity, 20), "env"),
        (lambda: GymnasiumTasks(lambda: ONE, draw_gravity, set_gravity, 20), "same environment"),
        (lambda: GymnasiumTasks(FourValues, draw_gravity, set_gravity, 20), "4 values"),
        (lambda: GymnasiumTasks(ArrayReward, draw_gravity, set_gravity, 20), "reward"),
        (lambda: GymnasiumTasks(WrongShape, draw_gravity, set_gravity, 20), r"reset .*\(3,\)"),
        (lambda: GymnasiumTasks(WrongShapeLater, draw_gravity, set_gravity, 20), r"step .*\(1, 1\)"),
        (lambda: GymnasiumTasks(NumberForTermination, draw_gravity, set_gravity, 20), "terminated"),
        (lambda: GymnasiumTasks(NeedsOptions, draw_gravity, set_gravity, 20), "options"),
        (
            lambda: GymnasiumTasks(lambda: NormalizeObservation(PendulumEnv()), draw_gravity, set_gravity, 20),
            "NormalizeObservation",
        ),
        (lambda: VectorTasks(lambda count: ONE_BATCH, draw_gravity, lambda batch, tasks: None, 20), "make_batch"),
        (lambda: VectorTasks(ONE_BATCH, draw_gravity, lambda batch, tasks: None, 20), "make_batch"),
    ],
)
def test_it_is_refused_in_one_line(make, names):
    with pytest.raises(ValueError, match=names) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert "allowed" in str(caught.value) or "cannot" in str(caught.value)


def test_the_sound_environment_is_not_refused():
    batch = GymnasiumTasks(Walk, draw_gravity, set_gravity, 20).make(3)
    observations, _ = batch.reset(seed=[0, 1, 2], options={"tasks": {"gravity": np.arange(3.0)}})
    assert observations.shape == (3, 1)
    batch.close()


class Counted(Walk):
    open = 0

    def __init__(self):
        type(self).open += 1

    def close(self):
        type(self).open -= 1


def test_what_is_opened_to_be_tried_is_closed():
    distribution = GymnasiumTasks(Counted, draw_gravity, set_gravity, 20)
    assert Counted.open == 0
    batch = distribution.make(4)
    assert Counted.open == 4
    batch.close()
    assert Counted.open == 0
