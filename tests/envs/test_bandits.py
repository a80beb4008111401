"""Bernoulli bandits: payoffs, tasks, seeds, and what a batch with discrete actions refuses."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from metarl.envs import BernoulliBandits, SingleTaskEnv

LANES, PULLS = 400, 50


def pulled(arm, seed=0, probabilities=(0.1, 0.5, 0.9)):
    """Payoffs (T, N) of lanes that always pull one arm, with tasks that differ between the halves of the lanes."""
    batch = BernoulliBandits(3, PULLS).make(LANES)
    tasks = {"probabilities": np.array([probabilities, probabilities[::-1]])}
    observations, _ = batch.reset(seed=seed, options={"tasks": tasks})
    payoffs = []
    for t in range(PULLS):
        seen, rewards, terminated, truncated, _ = batch.step(np.full(LANES, arm))
        np.testing.assert_array_equal(seen, observations)
        assert not terminated.any()
        assert truncated.all() == (t == PULLS - 1)
        payoffs.append(rewards)
    return np.stack(payoffs)


@pytest.mark.parametrize(("arm", "first", "second"), [(0, 0.1, 0.9), (1, 0.5, 0.5), (2, 0.9, 0.1)])
def test_an_arm_pays_with_its_own_probability(arm, first, second):
    payoffs = pulled(arm)
    assert set(np.unique(payoffs)) == {0.0, 1.0}
    assert payoffs[:, : LANES // 2].mean() == pytest.approx(first, abs=0.02)  # 5 standard errors
    assert payoffs[:, LANES // 2 :].mean() == pytest.approx(second, abs=0.02)


def test_payoffs_are_independent_over_lanes_and_pulls():
    payoffs = pulled(1)
    assert np.abs(np.corrcoef(payoffs)[np.triu_indices(PULLS, 1)]).max() < 0.25  # 5 standard errors
    assert payoffs.mean(axis=0).std() == pytest.approx(0.5 / np.sqrt(PULLS), rel=0.15)


def test_seeds_name_the_payoffs():
    np.testing.assert_array_equal(pulled(1), pulled(1))
    assert (pulled(1) != pulled(1, seed=LANES)).mean() == pytest.approx(0.5, abs=0.02)


def test_arms_that_certainly_pay_or_do_not():
    assert pulled(0, probabilities=(1.0, 0.5, 0.0))[:, : LANES // 2].all()
    assert not pulled(2, probabilities=(1.0, 0.5, 0.0))[:, : LANES // 2].any()


def test_probabilities_are_uniform():
    drawn = BernoulliBandits(4).sample(5000, np.random.default_rng(0))["probabilities"]
    assert drawn.shape == (5000, 4)
    np.testing.assert_allclose(drawn.mean(axis=0), 0.5, atol=0.02)
    np.testing.assert_allclose(drawn.std(axis=0), 1 / np.sqrt(12), rtol=0.03)


def test_bad_calls():
    with pytest.raises(ValueError, match="arms = 1"):
        BernoulliBandits(1)
    batch = BernoulliBandits(3).make(2)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match="actions have shape"):
        batch.step(np.zeros((2, 1), int))
    for wrong in (3, -1, 0.5):
        with pytest.raises(ValueError, match=f"the action of lane 1 is {wrong}.*; allowed: a whole number, 0 to 2"):
            batch.step(np.array([2, wrong]))


def test_gymnasium_checker_passes():
    check_env(SingleTaskEnv(BernoulliBandits()), skip_render_check=True)
