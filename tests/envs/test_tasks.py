"""Tasks, batches, 2D navigation against points moved by hand, gymnasium's checker on every environment."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from metarl import envs
from tests.envs.mujoco_oracle import CASES


class Point:
    """One episode of 2D navigation, as one would write it on paper."""

    def __init__(self, goal, horizon):
        self.x, self.y, self.goal, self.steps, self.horizon = 0.0, 0.0, goal, 0, horizon
        self.terminated = self.truncated = False

    def step(self, action):
        if self.terminated or self.truncated:
            return 0.0
        self.x += min(0.1, max(-0.1, action[0]))
        self.y += min(0.1, max(-0.1, action[1]))
        self.steps += 1
        dx, dy = self.x - self.goal[0], self.y - self.goal[1]
        self.terminated = abs(dx) < 0.01 and abs(dy) < 0.01
        self.truncated = self.steps >= self.horizon
        return -((dx * dx + dy * dy) ** 0.5)


def test_navigation_equals_points():
    distribution = envs.Navigation2D(horizon=40)
    goals = np.array([[0.05, 0.0], [0.5, -0.5], [-0.2, 0.1]])
    batch = distribution.make(6)
    observations, _ = batch.reset(seed=0, options={"tasks": {"goal": goals}})
    assert not observations.any()
    points = [Point(goals[i // 2], 40) for i in range(6)]
    rng = np.random.default_rng(0)
    for t in range(45):
        actions = rng.normal(0, 0.1, (6, 2))
        if t == 0:
            actions[0] = 0.05, 0.0
        observations, rewards, terminated, _, _ = batch.step(actions)
        for i, point in enumerate(points):
            was_truncated = point.truncated
            assert rewards[i] == pytest.approx(point.step(actions[i]), abs=1e-12)
            np.testing.assert_allclose(observations[i], [point.x, point.y], atol=1e-12)
            assert terminated[i] == (point.terminated or was_truncated)
            assert batch.finished[i] == (point.terminated or point.truncated)
    assert points[0].terminated


@pytest.mark.parametrize(
    ("place", "reached"),
    [
        ((0.009, 0.009), True),  # 0.0127 from the goal: the region is a square, not a disc
        ((-0.009, 0.009), True),
        ((0.0, 0.0099), True),
        ((0.0101, 0.0), False),
        ((0.0, -0.0101), False),
        ((0.0101, 0.0101), False),
    ],
)
def test_the_goal_of_navigation_is_a_square_of_half_side_0_01(place, reached):
    batch = envs.Navigation2D().make(1)
    batch.reset(seed=0, options={"tasks": {"goal": np.array([[0.05, -0.05]])}})
    _, rewards, terminated, _, _ = batch.step(np.array([[0.05 + place[0], -0.05 + place[1]]]))
    assert terminated.tolist() == [reached]
    assert rewards[0] == pytest.approx(-np.hypot(*place))


def test_goals_are_uniform_and_seeded():
    distribution = envs.Navigation2D()
    goals = distribution.sample(5000, np.random.default_rng(1))["goal"]
    assert goals.shape == (5000, 2)
    assert np.abs(goals).max() <= 0.5
    np.testing.assert_allclose(goals.mean(0), 0.0, atol=0.03)
    np.testing.assert_allclose(goals.std(0), 1 / np.sqrt(12), rtol=0.05)
    np.testing.assert_array_equal(goals, distribution.sample(5000, np.random.default_rng(1))["goal"])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"goal": np.zeros((3, 2))}, "3 tasks for 4 lanes; allowed: a divisor of the lanes"),
        ({"goal": np.zeros((2, 3))}, "'goal' has shape"),
        ({"goal": np.array([[0.0, 0.0], [0.0, 0.6]])}, "'goal' of task 1"),
        ({"gaol": np.zeros((2, 2))}, "parameters \\['gaol'\\]; allowed: exactly \\['goal'\\]"),
        ({"goal": np.zeros((0, 2))}, "allowed: one positive number for all"),
    ],
)
def test_bad_tasks(tasks, message):
    with pytest.raises(ValueError, match=message):
        envs.Navigation2D().make(4).reset(options={"tasks": tasks})


def test_bad_calls():
    batch = envs.Navigation2D().make(2)
    with pytest.raises(ValueError, match="3 seeds for 2 lanes"):
        batch.reset(seed=[1, 2, 3])
    batch.reset(seed=0)
    with pytest.raises(ValueError, match="actions have shape"):
        batch.step(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="the action of lane 1 is"):
        batch.step(np.array([[0.0, 0.0], [np.nan, 0.0]]))
    with pytest.raises(ValueError, match="num_envs = 0"):
        envs.Navigation2D().make(0)
    with pytest.raises(RuntimeError, match="navigation_2d has no pictures"):
        batch.render_lane(0)


@pytest.mark.parametrize(
    ("gym_id", "settings"),
    [("metarl/Navigation2D-v0", {})]
    + [(f"metarl/{distribution.__name__}-v0", {"dynamics": dynamics}) for distribution, dynamics in CASES],
)
def test_gymnasium_checker_passes(gym_id, settings):
    env = gymnasium.make(gym_id, **settings)
    with warnings.catch_warnings():
        # the checker would like bounded observations, and gymnasium's own environments have none
        warnings.filterwarnings("ignore", r".*A Box observation space (minimum|maximum) value is")
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_single_environment_keeps_or_takes_its_task():
    env = gymnasium.make("metarl/AntGoal-v0", dynamics="gymnasium").unwrapped
    env.reset(seed=0)
    drawn = env.task["goal"]
    env.reset()
    np.testing.assert_array_equal(env.task["goal"], drawn)
    env.reset(options={"task": {"goal": [1.0, 2.0]}})
    np.testing.assert_array_equal(env.task["goal"], [1.0, 2.0])
    with pytest.raises(ValueError, match="allowed"):
        env.reset(options={"task": {"goal": [1.0, 4.0]}})
    with pytest.raises(ValueError, match=r"options have 'goal'; allowed: task, as in"):
        env.reset(options={"goal": [1.0, 2.0]})
    assert env.metadata["render_fps"] == 20


def test_single_environment_equals_a_lane():
    env = gymnasium.make("metarl/HalfCheetahVelocity-v0").unwrapped
    first, _ = env.reset(seed=3, options={"task": {"velocity": 1.5}})
    twin = env.distribution.make(2)
    twin.reset(seed=0, options={"tasks": {"velocity": np.array([1.5])}})
    twin.simulation.state[1] = env.batch.simulation.state[0]
    action = np.linspace(-1, 1, 6)
    observation, reward, terminated, truncated, info = env.step(action)
    expected = twin.step(np.stack([action, action]))
    np.testing.assert_array_equal(observation, expected[0][1])
    assert reward == expected[1][1]
    assert (terminated, truncated, bool(info["blown_up"])) == (False, False, False)
    assert first.shape == observation.shape


@pytest.mark.parametrize(
    ("distribution", "name", "low", "high"),
    [
        (envs.HalfCheetahVelocity, "velocity", 0, 2),
        (envs.AntVelocity, "velocity", 0, 3),
        (envs.AntGoal, "goal", -3, 3),
    ],
)
def test_tasks_are_uniform_over_the_papers_range(distribution, name, low, high):
    drawn = distribution().sample(5000, np.random.default_rng(0))[name]
    assert low <= drawn.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < drawn.max() <= high
    np.testing.assert_allclose(drawn.mean(axis=0), (low + high) / 2, atol=0.02 * (high - low))
    np.testing.assert_allclose(drawn.std(axis=0), (high - low) / np.sqrt(12), rtol=0.03)


@pytest.mark.parametrize("distribution", [envs.HalfCheetahVelocity, envs.AntVelocity])
def test_velocities_of_a_meta_batch_are_spread_evenly_and_those_of_a_test_are_not(distribution):
    drawn = [distribution().sample(4, np.random.default_rng(seed))["velocity"] for seed in range(1000)]
    fastest = distribution.fastest["paper"]
    share = np.array(drawn) / fastest
    assert (np.sort(np.floor(4 * share), axis=1) == np.arange(4)).all()  # one in each quarter
    np.testing.assert_allclose(np.sort(share, axis=0).T, np.tile(np.arange(0.5, 1000) / 1000, (4, 1)), atol=0.07)
    np.testing.assert_allclose(np.corrcoef(share.T)[0, 1:], -5 / 16, atol=0.08)  # in random order
    tests = [distribution().sample_test(4, np.random.default_rng(seed))["velocity"] for seed in range(1000)]
    np.testing.assert_allclose(np.sort(np.ravel(tests)) / fastest, np.arange(0.5, 4000) / 4000, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(np.transpose(tests))[0, 1:], 0, atol=0.1)


@pytest.mark.parametrize("distribution", [envs.HalfCheetahDirection, envs.AntDirection])
def test_both_directions_are_equally_likely(distribution):
    drawn = [distribution().sample(5, np.random.default_rng(seed))["direction"] for seed in range(1000)]
    assert set(np.unique(drawn)) == {-1, 1}
    np.testing.assert_allclose(np.mean(drawn, axis=0), 0, atol=0.1)  # each task by itself
    assert (np.abs(np.sum(drawn, axis=1)) == 1).all()  # and as many of one as of the other
