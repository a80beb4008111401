"""Lanes against the same environments played one by one; what cannot be used gets one line."""

import time

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import SyncVectorEnv
from torch import nn

import metarl
from metarl import envs
from metarl.rl.evaluation import held_out_tasks
from tests.builders import make_learner
from tests.envs.examples import (
    CASES,
    Parts,
    draw_factor,
    draw_pendulum,
    set_factor,
    set_pendulum,
)


@pytest.mark.parametrize(("gym_id", "sample", "set_task"), CASES)
def test_lanes_equal_single_environments_and_wait_after_the_end(gym_id, sample, set_task):
    distribution = envs.GymnasiumTasks(gym_id, sample, set_task, horizon=40)
    assert (distribution.horizon, distribution.name, distribution.dynamics) == (40, gym_id, "gymnasium")
    tasks = distribution.sample(3, np.random.default_rng(0))
    batch = distribution.make(6)
    for round_ in range(2):
        seeds = [round_ * 10 + lane for lane in range(6)]
        observations, _ = batch.reset(seed=seeds, options={"tasks": tasks})
        singles = [gymnasium.make(gym_id, max_episode_steps=40) for _ in range(6)]
        for lane, single in enumerate(singles):
            set_task(single.unwrapped, {name: values[lane // 2] for name, values in tasks.items()})
            np.testing.assert_array_equal(observations[lane], single.reset(seed=seeds[lane])[0])
        batch.action_space.seed(round_)
        ended = np.zeros(6, bool)
        for _ in range(45):
            actions = batch.action_space.sample()
            before = observations
            observations, rewards, terminated, truncated, _ = batch.step(actions)
            for lane, single in enumerate(singles):
                if ended[lane]:
                    np.testing.assert_array_equal(observations[lane], before[lane])
                    assert rewards[lane] == 0.0
                    continue
                expected = single.step(actions[lane])
                np.testing.assert_array_equal(observations[lane], expected[0])
                assert (rewards[lane], terminated[lane], truncated[lane]) == expected[1:4]
                ended[lane] = expected[2] or expected[3]
        assert ended.all()


@pytest.mark.parametrize("tasks", [{}, {"gravity": []}, {"gravity": [1.0, 2.0], "mass": [1.0]}])
def test_a_finite_set_needs_tasks_of_equal_number(tasks):
    rows = {name: len(values) for name, values in tasks.items()}
    with pytest.raises(ValueError, match=rf"^tasks with rows {rows}; allowed: as many in all arrays, at least 1$"):
        envs.choose_from(tasks)


def test_test_and_validation_tasks_come_from_their_own_samplers():
    train, test = {"gravity": np.arange(1.0, 6.0)}, {"gravity": np.array([20.0, 30.0])}
    arguments = ("Pendulum-v1", envs.choose_from(train), set_pendulum)
    distribution = envs.GymnasiumTasks(*arguments, sample_test=envs.choose_from(test))
    kept_back = envs.choose_from({"gravity": np.array([40.0])})
    three = envs.GymnasiumTasks(*arguments, sample_test=envs.choose_from(test), sample_validation=kept_back)
    for kind in (distribution, envs.ObservedTasks(distribution), three, envs.ObservedTasks(three)):
        policy = metarl.GaussianMLP(kind.observation_space, kind.action_space, (4,))
        learner = make_learner(kind, policy, num_tasks=5, episodes_per_task=1)
        assert sorted(held_out_tasks(learner, 4)["gravity"]) == [20, 20, 30, 30]
        validation = sorted(held_out_tasks(learner, 4, "validation")["gravity"])
        assert validation == ([40] * 4 if hasattr(kind, "sample_validation") else [20, 20, 30, 30])
        assert sorted(kind.sample(5, np.random.default_rng(1))["gravity"]) == [1, 2, 3, 4, 5]
    assert hasattr(envs.ObservedTasks(three), "sample_validation")
    observations, _ = envs.ObservedTasks(distribution).make(2).reset(seed=0, options={"tasks": test})
    assert observations[:, -1].tolist() == [20, 30]


class Nothing:
    pass


class NoStep(gymnasium.Env):
    observation_space = action_space = Box(0, 1, (1,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(1), {}


class NoSpace(NoStep):
    action_space = None

    def step(self, action):
        return np.zeros(1), 0.0, False, False, {}


class OldReset(NoSpace):
    action_space, observation_space = Discrete(2), Box(0, 1, (2,))

    def reset(self):
        return np.zeros(2)


class Sequences(NoSpace):
    action_space, observation_space = Discrete(2), gymnasium.spaces.Sequence(Box(0, 1, (2,)))


def refuse_some(pendulum, task):
    if task["gravity"] > 10:
        raise RuntimeError("too\nheavy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Pendulum-v9", draw_pendulum, set_pendulum), r"^Pendulum-v9: Environment version"),
        ((Nothing, draw_pendulum, set_pendulum), r"^Nothing made a Nothing; allowed: a gymnasium.Env$"),
        ((NoStep, draw_pendulum, set_pendulum, 5), r"^a NoStep has no step; needed: reset, step, observation_space, a"),
        (
            (NoSpace, draw_pendulum, set_pendulum, 5),
            r"^a NoSpace has no action_space; needed: reset, step, observation",
        ),
        (
            (Sequences, draw_pendulum, set_pendulum, 5),
            r"^observation space Sequence.* is not supported; allowed: Box, Di",
        ),
        ((Parts, draw_factor, set_factor), r"^Parts has no time limit of its own; allowed: with horizon$"),
        (
            (lambda: gymnasium.make("Pendulum-v1"), draw_pendulum, set_pendulum, 300),
            r"^horizon = 300, but <lambda> ends after 200 steps; allowed: at most 200$",
        ),
        (
            ("Pendulum-v1", draw_pendulum, refuse_some),
            r"^set_task fails for the task \{'gravity': 10.2\d+\}, of lane 0: RuntimeError: too heavy$",
        ),
        (
            (
                "Pendulum-v1",
                lambda n, rng: {"gravity": np.ones(n)},
                refuse_some,
                None,
                lambda n, rng: {"gravity": 11.0 + np.zeros(n)},
            ),
            r"^set_task fails for the task \{'gravity': 11.0\}, of lane 0: RuntimeError: too heavy$",
        ),
        ((OldReset, draw_factor, set_factor, 5), r"^OldReset cannot be reset with a seed .*'seed'"),
        (
            ("Pendulum-v1", lambda count, rng: {"gravity": rng.random(3)}, set_pendulum),
            r"^the sampler returned 'gravity' with shape \(3,\) of float64; allowed for 2 tasks: \(2, ...\) of numbe",
        ),
        (
            ("Pendulum-v1", lambda count, rng: rng.random(count), set_pendulum),
            r"^the sampler returned a ndarray; allow",
        ),
        (
            ("Pendulum-v1", lambda count, rng: {"gravity": ["low"] * count}, set_pendulum),
            r"^the sampler returned 'gravity' with shape \(2,\) of <U3; allowed for 2 tasks",
        ),
    ],
)
def test_what_cannot_be_used_gets_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        envs.GymnasiumTasks(*arguments)
    assert len(str(caught.value).splitlines()) == 1


def test_unsupported_actions_and_distributions_are_refused_before_training():
    class Many(Parts):
        action_space = gymnasium.spaces.MultiBinary(2)

    distribution = envs.GymnasiumTasks(Many, draw_factor, set_factor, horizon=4)
    with pytest.raises(
        ValueError, match=r"^action space MultiBinary\(2\) is not supported; allowed: Box of floating-point"
    ):
        metarl.Learner(distribution, nn.Linear(8, 2))
    with pytest.raises(
        ValueError, match=r"^the task distribution Nothing has no sample, make, horizon, observation_sp"
    ):
        metarl.Learner(Nothing(), nn.Linear(8, 2))


def test_lanes_need_tasks_that_fit():
    batch = envs.GymnasiumTasks("Pendulum-v1", draw_pendulum, set_pendulum).make(4)
    with pytest.raises(ValueError, match="the lanes have no tasks"):
        batch.reset(seed=0)
    with pytest.raises(ValueError, match="3 tasks for 4 lanes; allowed: a divisor of the lanes"):
        batch.reset(seed=0, options={"tasks": {"gravity": np.ones(3)}})
    with pytest.raises(ValueError, match="allowed: exactly"):
        batch.reset(seed=0, options={"tasks": {"length": np.ones(2)}})
    with pytest.raises(ValueError, match="make_batch returned a Parts; allowed: a gymnasium"):
        envs.VectorTasks(lambda num_envs: Parts(), draw_factor, set_factor, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("gym_id", "sample", "set_task"), CASES)
def test_steps_per_second_against_gymnasium(gym_id, sample, set_task, capsys):
    """The same 64 lanes, actions and seeds, while no episode has ended; medians of turns, in time of the processor."""
    distribution = envs.GymnasiumTasks(gym_id, sample, set_task)
    ours, theirs = distribution.make(64), SyncVectorEnv([lambda: gymnasium.make(gym_id)] * 64)
    tasks = {"tasks": {name: np.repeat(v[:1], 64, axis=0) for name, v in sample(1, np.random.default_rng(0)).items()}}
    discrete = isinstance(distribution.action_space, Discrete)
    actions = [np.full(64, t % 2) if discrete else np.zeros((64, 1), np.float32) for t in range(10)]

    def seconds(batch, options):
        batch.reset(seed=0, options=options)
        start = time.process_time()
        for action in actions:
            *_, terminated, truncated, _ = batch.step(action)
            assert not (terminated | truncated).any()
        return time.process_time() - start

    turns = np.array([(seconds(ours, tasks), seconds(theirs, None)) for _ in range(60)])
    ratio = np.median(turns[:, 1]) / np.median(turns[:, 0])
    with capsys.disabled():
        print(f"\n{gym_id}: {ratio:.2f} of SyncVectorEnv's steps per second")
    assert ratio >= 0.9
