"""Random decision processes: rewards, transitions, prior, seeds, and refusals."""

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from metarl.envs import RandomMDPs, SingleTaskEnv

HORIZON, LANES = 20, 300


def played(tasks, seed=0):
    """States before and after each step, actions and rewards, (T, N) each, of random actions."""
    batch = RandomMDPs(4, 3, HORIZON).make(LANES)
    observations, _ = batch.reset(seed=seed, options={"tasks": tasks})
    rng, steps = np.random.default_rng(0), []
    for _ in range(HORIZON):
        actions = rng.integers(3, size=LANES)
        following, rewards, *_ = batch.step(actions)
        assert (following.sum(axis=1) == 1).all()
        steps.append((observations.argmax(axis=1), actions, rewards, following.argmax(axis=1)))
        observations = following
    return [np.stack(part) for part in zip(*steps, strict=True)]


def one_task(seed=1):
    return RandomMDPs(4, 3).sample(1, np.random.default_rng(seed))


def test_rewards_have_the_means_of_the_task_and_unit_variance():
    tasks = one_task()
    states, actions, rewards, _ = played(tasks)
    noise = rewards - tasks["mean_rewards"][0][states, actions]
    for state in range(4):
        for action in range(3):
            there = (states == state) & (actions == action)
            assert abs(noise[there].mean()) < 5 / np.sqrt(there.sum())
    assert noise.std() == pytest.approx(1.0, abs=0.05)
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.07


def test_states_follow_with_the_probabilities_of_the_task():
    tasks = one_task()
    states, actions, rewards, following = played(tasks)
    assert not states[0].any()
    np.testing.assert_array_equal(states[1:], following[:-1])
    for state in range(4):
        for action in range(3):
            there = (states == state) & (actions == action)
            shares = np.bincount(following[there], minlength=4) / there.sum()
            np.testing.assert_allclose(shares, tasks["transitions"][0, state, action], atol=2.5 / np.sqrt(there.sum()))
    # what is drawn for a reward says nothing about the next state
    noise = rewards - tasks["mean_rewards"][0][states, actions]
    assert abs(np.corrcoef(noise.ravel(), following.ravel())[0, 1]) < 0.07


def test_seeds_name_the_episodes():
    first, again, other = (played(one_task(), seed) for seed in (0, 0, LANES))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.isin(first[2], other[2]).any()


def test_the_prior_is_that_of_the_paper():
    tasks = RandomMDPs().sample(500, np.random.default_rng(0))
    means, transitions = tasks["mean_rewards"], tasks["transitions"]
    assert means.shape == (500, 10, 5)
    assert transitions.shape == (500, 10, 5, 10)
    assert (means.mean(), means.std()) == pytest.approx((1.0, 1.0), abs=0.03)
    np.testing.assert_allclose(transitions.sum(axis=-1), 1.0)
    # of a flat Dirichlet distribution over 10 states: mean 1 / 10 and variance 9 / 1100
    np.testing.assert_allclose(transitions.mean(axis=(0, 1, 2)), 0.1, atol=0.003)
    assert transitions.var() == pytest.approx(9 / 1100, rel=0.03)


def test_bad_calls():
    with pytest.raises(ValueError, match="states = 1"):
        RandomMDPs(states=1)
    with pytest.raises(ValueError, match="actions = 1"):
        RandomMDPs(actions=1)
    tasks = one_task()
    tasks["transitions"][0, 2, 1] = 0.2
    with pytest.raises(ValueError, match=r"transitions\[2, 1\] of lane 0 sum to 0.8; allowed: 1"):
        RandomMDPs(4, 3).make(2).reset(options={"tasks": tasks})


def test_gymnasium_checker_passes():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*A Box observation space (minimum|maximum) value is")
        check_env(SingleTaskEnv(RandomMDPs()), skip_render_check=True)
