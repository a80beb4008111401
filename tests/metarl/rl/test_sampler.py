"""Sampling: budgets of episodes and of steps, and the environments that are opened and closed for them."""

import copy
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, VectorWrapper

from metarl import CategoricalMLP, GaussianMLP, Learner, Sampling, SettingError
from metarl.core.randomness import RolloutKey
from metarl.envs import GymnasiumTasks, HalfCheetahDirection, Navigation2D
from metarl.rl.action_distributions import action_distribution_for
from metarl.rl.rollout import Rollout
from metarl.rl.sampler import Lanes, Sampler, num_rows
from tests.builders import random_parameters
from tests.probes import CorridorTasks

KEY = RolloutKey(seed=4, purpose="test/step_0", iteration=2)


def corridor_sampler(budget="steps", broken="", horizon=6):
    distribution = CorridorTasks(horizon, AutoresetMode.NEXT_STEP, broken)
    torch.manual_seed(0)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (5,))
    rollout = Rollout(policy, action_distribution_for(distribution.action_space), horizon)
    return Sampler(Lanes(distribution, 1), rollout, budget), policy


def test_a_budget_of_steps_counts_them_in_whole_episodes():
    sampler, policy = corridor_sampler()
    tasks, phi = {"length": np.array([2, 9, 4])}, random_parameters(policy, 3)
    found = sampler.sample(phi, tasks, 4, KEY)
    # 12 episodes of 2 steps, 4 of 6, 6 of 4: 24 steps of every task
    assert found.valid.any(dim=1).sum(dim=1).tolist() == [12, 4, 6]
    assert found.lengths.sum(dim=1).tolist() == [24, 24, 24]
    envs = sampler.lanes.of(12)
    rounds = [sampler.rollout(envs, phi, tasks, replace(KEY, first_episode=first)) for first in (0, 4, 8)]
    for task in range(3):
        for episode in range(found.valid.shape[2]):
            single, lane = rounds[episode // 4], episode % 4
            length = int(found.lengths[task, episode])
            assert length in (0, min(6, tasks["length"][task]))
            for name in ("observations", "actions", "dist_params", "log_probs", "rewards"):
                expected = getattr(single, name)[task, :length, lane]
                assert torch.equal(getattr(found, name)[task, :length, episode], expected), name
            if length:
                assert found.terminated[task, episode] == single.terminated[task, lane]
                assert torch.equal(found.final_observations[task, episode], single.final_observations[task, lane])


def test_a_task_ends_with_the_episode_that_reaches_the_budget():
    sampler, policy = corridor_sampler()
    found = sampler.sample(random_parameters(policy, 2), {"length": np.array([5, 9])}, 2, KEY)
    assert found.lengths.tolist() == [[5, 5, 5], [6, 6, 0]]
    assert (found.rewards[~found.valid] == 0).all()


def test_success_counts_the_episodes_that_are_there():
    sampler, policy = corridor_sampler(broken="reports success")
    found = sampler.sample(random_parameters(policy, 2), {"length": np.array([3, 9])}, 2, KEY)
    assert found.lengths.tolist() == [[3, 3, 3, 3], [6, 6, 0, 0]]
    assert found.succeeded.tolist() == [[False] * 4, [True, True, False, False]]
    assert found.success_rates.tolist() == [0, 1]


def test_a_budget_of_episodes_is_one_rollout():
    sampler, policy = corridor_sampler("episodes")
    tasks, phi = {"length": np.array([2, 9])}, random_parameters(policy, 2)
    found = sampler.sample(phi, tasks, 3, KEY)
    expected = sampler.rollout(sampler.lanes.of(6), phi, tasks, KEY)
    assert torch.equal(found.actions, expected.actions)
    assert found.lengths.tolist() == [[2] * 3, [6] * 3]


class Pendulums(GymnasiumTasks):
    """Gravities, on gymnasium's own environment."""

    def __init__(self):
        super().__init__(
            "Pendulum-v1",
            lambda count, rng: {"gravity": rng.uniform(5, 15, count)},
            lambda pendulum, task: setattr(pendulum, "g", task["gravity"]),
            horizon=7,
        )


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 12, 20])
@pytest.mark.parametrize(
    "distribution",
    [
        Navigation2D(60),  # long enough for a recorded policy
        HalfCheetahDirection("paper", 5),
        CorridorTasks(6, AutoresetMode.NEXT_STEP, "reports success"),
        CorridorTasks(6, AutoresetMode.SAME_STEP),
        Pendulums(),
    ],
    ids=["navigation", "cheetah", "corridors", "corridors that autoreset", "gymnasium"],
)
@pytest.mark.parametrize("budget", ["episodes", "steps"])
def test_episodes_in_rounds_are_the_same_to_the_last_bit(distribution, lanes, budget):
    torch.manual_seed(0)
    discrete = isinstance(distribution.action_space, Discrete)
    kind = CategoricalMLP if discrete else GaussianMLP
    policy = kind(distribution.observation_space, distribution.action_space, (16, 16))
    tasks = distribution.sample(4, np.random.default_rng(0))
    rollout = Rollout(policy, action_distribution_for(distribution.action_space), distribution.horizon)
    phi = random_parameters(policy, 4, scale=0.1)
    expected, found = (
        Sampler(Lanes(distribution, 1, most), rollout, budget).sample(phi, tasks, 3, KEY) for most in (0, lanes)
    )
    for field in fields(expected):
        one, other = (getattr(episodes, field.name) for episodes in (expected, found))
        assert (one is None and other is None) or torch.equal(one, other), field.name


@pytest.mark.parametrize(("most", "num_envs"), [(0, 24), (100, 24), (23, 12), (12, 12), (7, 6), (5, 3), (2, 2), (1, 1)])
def test_as_many_lanes_as_make_equal_rounds_are_opened(most, num_envs):
    lanes = Lanes(CorridorTasks(), 1, most)
    assert lanes.for_episodes(4, 6).num_envs == num_envs
    lanes.close()


def test_a_learner_opens_no_more_lanes_than_it_is_allowed():
    distribution = CountedTasks()
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (4,))
    with Learner(distribution, policy, Sampling(4, 6, lanes=5), threads=1) as learner:
        distribution.made.clear()  # by the checks of a new learner
        learner.step()
        learner.evaluate(3, inner_steps=1)
        assert [envs.num_envs for envs in distribution.made] == [3]


class Counted(VectorWrapper):
    """Counts how often it was closed."""

    closed = 0

    def close(self, **arguments):
        self.closed += 1
        self.env.close(**arguments)


class CountedTasks(CorridorTasks):
    """Keeps the environments that it has made."""

    def __init__(self):
        super().__init__()
        self.made = []

    def make(self, num_envs, threads=1):
        self.made.append(Counted(super().make(num_envs, threads)))
        return self.made[-1]


def test_environments_are_made_once_per_number_of_lanes_and_closed_once():
    distribution = CountedTasks()
    lanes = Lanes(distribution, 1)
    assert distribution.made == []
    assert lanes.of(4) is lanes.of(4)
    assert lanes.of(6).num_envs == 6
    assert len(distribution.made) == 2
    lanes.close()
    lanes.close()
    assert [envs.closed for envs in distribution.made] == [1, 1]
    assert lanes.of(4) is distribution.made[2]  # made again when they are needed
    lanes.close()


def test_a_copy_of_lanes_opens_environments_of_its_own():
    lanes = Lanes(CountedTasks(), 1)
    lanes.of(4)
    other = copy.deepcopy(lanes)
    other.close()
    assert lanes.of(4).closed == 0
    lanes.close()


def test_a_forked_process_opens_environments_of_its_own_and_leaves_its_parents_alone(monkeypatch):
    lanes = Lanes(CountedTasks(), 1)
    of_parent = lanes.of(4)
    monkeypatch.setattr("os.getpid", lambda: -1)  # as in a child
    lanes.close()
    assert of_parent.closed == 0
    of_child = lanes.of(4)
    assert of_child is not of_parent
    lanes.close()
    assert (of_parent.closed, of_child.closed) == (0, 1)


def test_another_number_of_lanes_than_asked_for_is_refused():
    class Stubborn(CorridorTasks):
        def make(self, num_envs, threads=1):
            return super().make(8, threads)

    with pytest.raises(ValueError, match=r"make\(20\) = 8"):
        Lanes(Stubborn(), 1).of(20)


def test_the_number_of_tasks_is_that_of_all_their_arrays():
    assert num_rows({"a": np.zeros((3, 2)), "b": [1, 2, 3]}) == 3
    for wrong in ({}, {"a": 0.3}, {"a": [[0.0, 0.0]], "b": [1, 2]}):
        with pytest.raises(ValueError, match="tasks = "):
            num_rows(wrong)


@pytest.mark.parametrize(("field", "value"), [("num_tasks", 0), ("episodes_per_task", 2.5), ("budget", "episode")])
def test_settings_out_of_bounds_name_their_field(field, value):
    with pytest.raises(SettingError, match=rf"^{field} = "):
        Sampling(**{field: value})
