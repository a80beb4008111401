"""Sampling: budgets of episodes and of steps, and the environments that are opened and closed for them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorWrapper

from metarl import CategoricalMLP, Sampling, SettingError
from metarl.core.randomness import RolloutKey
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
