"""Gymnasium's environments and one of our own as task distributions, for tests."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


def draw_cart_pole(count, rng):
    return {"length": rng.uniform(0.3, 1.5, count), "force": rng.choice([-10.0, 10.0], count)}


def set_cart_pole(cart_pole, task):
    cart_pole.length, cart_pole.force_mag = task["length"], task["force"]
    cart_pole.polemass_length = cart_pole.masspole * cart_pole.length


def draw_pendulum(count, rng):
    return {"gravity": rng.uniform(2.0, 15.0, count)}


def set_pendulum(pendulum, task):
    pendulum.g = task["gravity"]


CASES = [("CartPole-v1", draw_cart_pole, set_cart_pole), ("Pendulum-v1", draw_pendulum, set_pendulum)]


class Parts(gymnasium.Env):
    """A dictionary of a picture, a number and a direction, all of which show the step; the task is a factor."""

    observation_space = Dict(
        {"way": Discrete(3), "picture": Box(0, 255, (2, 2), np.uint8), "place": Box(-9.0, 9.0, (), np.float64)}
    )
    action_space = Box(-1.0, 1.0, (1,), np.float32)
    factor = 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.random()
        return self.observe(), {}

    def observe(self):
        picture = np.full((2, 2), 10 * self.steps, np.uint8)
        return {"picture": picture, "place": np.float64(self.place), "way": self.steps % 3}

    def step(self, action):
        self.steps += 1
        self.place = float(np.clip(self.place + action[0], -9, 9))
        return self.observe(), self.factor * self.place, False, self.steps == 4, {}


def draw_factor(count, rng):
    return {"factor": rng.choice([-1.0, 1.0], count)}


def set_factor(env, task):
    env.factor = task["factor"]
