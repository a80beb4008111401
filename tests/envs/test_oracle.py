"""The oracle sees the task, and nothing else changes."""

import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode

from metarl import envs
from tests.probes import CorridorTasks


def test_observations_end_with_the_task_of_the_lane():
    plain = envs.AntGoal(horizon=3)
    oracle = envs.ObservedTasks(plain)
    tasks = plain.sample(2, np.random.default_rng(0))
    batches = [distribution.make(4) for distribution in (plain, oracle)]
    firsts = [batch.reset(seed=[1, 2, 3, 4], options={"tasks": tasks})[0] for batch in batches]
    lanes = np.repeat(tasks["goal"], 2, axis=0)
    np.testing.assert_array_equal(firsts[1], np.hstack([firsts[0], lanes]))
    actions = np.full((4, 8), 0.3)
    steps = [batch.step(actions) for batch in batches]
    np.testing.assert_array_equal(steps[1][0], np.hstack([steps[0][0], lanes]))
    np.testing.assert_array_equal(steps[1][1], steps[0][1])
    assert oracle.observation_space.shape == (127,)
    assert oracle.observation_space.contains(steps[1][0][0])


def test_images_cannot_end_with_a_task():
    distribution = envs.Navigation2D()
    distribution.observation_space = Box(0, 1, (8, 8, 3))
    with pytest.raises(
        ValueError, match=r"observations of shape \(8, 8, 3\) cannot end with the task; allowed: vectors"
    ):
        envs.ObservedTasks(distribution)


def test_a_scalar_task_takes_one_place():
    oracle = envs.ObservedTasks(envs.HalfCheetahDirection())
    observations, _ = oracle.make(2).reset(seed=0, options={"tasks": {"direction": np.array([1.0, -1.0])}})
    assert observations[:, -1].tolist() == [1, -1]
    assert oracle.observation_space.shape == (21,)


@pytest.mark.parametrize("autoreset", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_the_last_observation_of_an_episode_shows_the_task_too(autoreset):
    corridors = CorridorTasks(autoreset=autoreset)
    plain = envs.VectorTasks(
        corridors.make,
        corridors.sample,
        lambda batch, tasks: batch.reset(options={"tasks": tasks}),
        horizon=6,
    )
    batch = envs.ObservedTasks(plain).make(4)
    batch.reset(seed=[0, 1, 2, 3], options={"tasks": {"length": np.array([2, 4])}})
    for step in (1, 2):
        observations, _, ended, _, infos = batch.step(np.ones(4, int))
        assert observations[:, 2].tolist() == [2, 2, 4, 4]
        finals = infos.get("final_obs", observations)
        for lane in np.flatnonzero(ended):
            assert finals[lane][1:].tolist() == [step, 2]
    assert ended.tolist() == [True, True, False, False]
    if autoreset == AutoresetMode.SAME_STEP:
        assert [final is None for final in finals] == [False, False, True, True]


@pytest.mark.parametrize("names", [("zeal", "angle"), ("angle", "zeal")])
def test_parameters_come_in_the_order_of_their_names_whatever_that_of_the_sampler(names):
    """So that an agent of one process reads what one of another has learned from."""

    def sample(count, rng):
        return {name: np.full(count, {"angle": 0.25, "zeal": 8.0}[name]) for name in names}

    plain = envs.GymnasiumTasks("Pendulum-v1", sample, lambda pendulum, task: None, horizon=5)
    oracle = envs.ObservedTasks(plain)
    batch = oracle.make(2)
    tasks = sample(2, None)
    observations, _ = batch.reset(seed=[0, 1], options={"tasks": tasks})
    assert observations[:, -2:].tolist() == [[0.25, 8.0]] * 2
    observations, *_ = batch.step(np.zeros((2, 1)))
    assert observations[:, -2:].tolist() == [[0.25, 8.0]] * 2


def test_the_bounds_of_the_space_come_in_the_same_order():
    plain = envs.Navigation2D()
    plain.task_space = {"zeal": Box(0.0, 9.0, ()), "angle": Box(-1.0, 1.0, (2,))}
    space = envs.ObservedTasks(plain).observation_space
    assert space.high[2:].tolist() == [1, 1, 9]
    assert space.low[2:].tolist() == [-1, -1, 0]
