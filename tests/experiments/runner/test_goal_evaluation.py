"""Counting successes as Meta-World does, and per goal: by hand, by its own function, and in whole evaluations."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from metarl import Learner, Sampling
from metarl.envs import GymnasiumTasks
from metarl.experiments.runner.goal_evaluation import (
    batches_of_goals,
    evaluate_goals,
    first_successes,
    official_success,
)
from metarl.rl.policies import GaussianMLP

HORIZON = 10


def test_a_goal_that_is_solved_quickly_counts_for_those_that_fail():
    """Three of four lanes fail, and the score is 100 %: the other has played three episodes before they play one."""
    assert official_success(["a"] * 4, np.array([0, 3, 0, 0]), HORIZON) == {"a": 1.0}


def test_the_first_episodes_to_end_count_for_each_environment():
    names = ["a", "a", "b", "b", "c", "c"]
    first = np.array([4, 0, 6, 7, 0, 0])
    # a: ends at 4, 8, and at 10 the failure; b: at 6, 7, 12; c: at 10, 10, 20
    assert official_success(names, first, HORIZON) == {"a": 2 / 3, "b": 1.0, "c": 0.0}


def test_of_episodes_that_end_together_the_first_lane_counts():
    assert official_success(["a"] * 4, np.array([0, 0, 10, 0]), HORIZON) == {"a": 1 / 3}
    assert official_success(["a"] * 4, np.array([0, 0, 0, 10]), HORIZON) == {"a": 0.0}


class ScriptedLanes:
    """What Meta-World's evaluation needs of its environments; each lane succeeds after a number of steps."""

    def __init__(self, names, first_success):
        self.names, self.first, self.num_envs = names, np.asarray(first_success), len(names)

    def get_attr(self, name):
        return self.names if name == "task_name" else [False] * self.num_envs

    def call(self, *arguments):
        pass

    def reset(self):
        self.elapsed = np.zeros(self.num_envs, int)
        return np.zeros((self.num_envs, 1)), {}

    def step(self, actions):
        self.elapsed += 1
        success = self.elapsed == self.first
        ends = success | (self.elapsed == HORIZON)
        self.elapsed[ends] = 0
        infos = {"final_info": {"episode": {"r": np.zeros(self.num_envs)}, "success": success}}
        return np.zeros((self.num_envs, 1)), None, np.zeros(self.num_envs, bool), ends, infos


class Idle:
    def eval_action(self, observations):
        return observations

    def reset(self, mask):
        pass


def test_the_count_is_that_of_meta_worlds_evaluation():
    evaluation = pytest.importorskip("metaworld.evaluation", reason="needs the extra 'meta-world'")
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    known = ["reach-v3", "push-v3", "door-open-v3"]
    rng = np.random.default_rng(0)
    for _ in range(50):
        names = rng.choice(known, 12).tolist()
        first = rng.integers(0, HORIZON + 1, 12) * rng.integers(0, 2, 12)
        lanes = ScriptedLanes([ALL_V3_ENVIRONMENTS[name].__name__ for name in names], first)
        mean, _, per_name, _ = evaluation.evaluation(Idle(), lanes, num_episodes=3)
        ours = official_success(names, first, HORIZON)
        assert ours == per_name
        assert np.mean(list(ours.values())) == pytest.approx(mean)


def test_batches_have_as_many_goals_of_each_environment():
    names = ["a"] * 4 + ["b"] * 4
    assert [batch.tolist() for batch in batches_of_goals(names, 4)] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [batch.tolist() for batch in batches_of_goals(["a"] * 5, 3)] == [[0, 1, 2], [3, 4]]


class Waiting(gymnasium.Env):
    """Succeeds from the time step that its task names on; 0 never."""

    observation_space, action_space = Box(-1, 1, (1,)), Box(-1, 1, (1,))
    after = 0

    def reset(self, *, seed=None, options=None):
        self.elapsed = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.elapsed += 1
        return np.zeros(1, np.float32), float(self.after), False, False, {"success": 0 < self.after <= self.elapsed}


def set_after(env, task):
    env.after = int(task["after"])


def test_an_evaluation_of_goals():
    tasks = GymnasiumTasks(Waiting, lambda count, rng: {"after": rng.integers(0, 9, count)}, set_after, HORIZON)
    policy = GaussianMLP(tasks.observation_space, tasks.action_space, (4,))
    with Learner(tasks, policy, sampling=Sampling(2, 2), threads=1) as learner:
        goals = {"after": np.array([0, 3, 0, 0, 4, 0, 6, 7])}
        plain = learner.evaluate(goals, 1, 2)
        parameters = dict(plain.path[-1].parameters)
        assert first_successes(learner, parameters, goals, lanes=3).tolist() == goals["after"].tolist()
        found = evaluate_goals(learner, plain, ["a"] * 4 + ["b"] * 4, lanes=8)
    assert found.others["success/per_goal"].tolist() == [0, 1, 0, 0, 1, 0, 1, 1]
    assert found.others["success/official"].tolist() == [1.0] * 8  # a: 3, 6, 9; b: 4, 6, 7
    assert found.metrics["success/per_goal/a"] == 0.25
    assert found.metrics["success/official/b"] == 1.0
    np.testing.assert_array_equal(found.per_task, plain.per_task)
    assert found.to_json()["success/per_goal/b"]["mean"] == 0.75
