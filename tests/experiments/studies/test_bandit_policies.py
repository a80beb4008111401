"""Known policies on bandits: the Gittins index against exact dynamic programming, published values, the command."""

from functools import cache

import numpy as np
import pytest

from metarl.experiments.studies import bandit_policies
from metarl.experiments.studies.bandit_policies import BanditStudy, gittins_indices, play, policies
from tests.experiments.runner.helpers import error_of


@cache
def bayes_optimal(arms, left):
    """The most that any policy earns in the pulls that are left, arms being pairs of payoffs 1 and 0."""
    if left == 0:
        return 0.0
    values = []
    for i, (ones, zeros) in enumerate(arms):
        chance = (ones + 1) / (ones + zeros + 2)
        paid, not_paid = (
            tuple(sorted((*arms[:i], of, *arms[i + 1 :]))) for of in ((ones + 1, zeros), (ones, zeros + 1))
        )
        values.append(chance * (1 + bayes_optimal(paid, left - 1)) + (1 - chance) * bayes_optimal(not_paid, left - 1))
    return max(values)


def test_the_last_pull_goes_to_the_arm_of_the_largest_mean():
    index = gittins_indices(4)[1]
    for ones, zeros in ((0, 0), (1, 0), (0, 2), (2, 1)):
        assert index[ones, zeros] == pytest.approx((ones + 1) / (ones + zeros + 2), abs=1e-9)


def test_the_index_of_an_unknown_arm_with_two_pulls_left():
    """With lambda between 1/3 and 2/3: go on and get 1/2 (1 + 2/3) + 1/2 lambda, or 2 lambda; equal at 5/9."""
    assert gittins_indices(2)[2][0, 0] == pytest.approx(5 / 9, abs=1e-3)


def test_indices_rise_with_payoffs_and_with_the_pulls_that_are_left():
    indices = gittins_indices(12)
    for left in range(2, 8):
        known = indices[left][: 13 - left, : 13 - left]
        assert (np.diff(known, axis=0) > 0).all()
        assert (np.diff(known, axis=1) < 0).all()
        assert (indices[left][:5, :5] >= indices[left - 1][:5, :5] - 1e-9).all()


def test_the_index_earns_what_the_best_policy_does():
    study = BanditStudy(arms=3, pulls=6, bandits=20_000)
    returns = play(study, policies(study)["Gittins index"])
    best = bayes_optimal(((0, 0),) * 3, 6)
    assert returns.mean() == pytest.approx(best, abs=4 * returns.std() / np.sqrt(len(returns)))


def test_what_they_earn_is_in_order_and_near_what_was_published():
    """Duan et al. (2016), table 1: the Gittins index 6.6 of 10 pulls of 5 arms, a random policy 5.0."""
    study = BanditStudy(bandits=4000)
    earned = {name: play(study, policy).mean() for name, policy in policies(study).items()}
    assert earned["random"] == pytest.approx(5.0, abs=0.15)
    assert earned["random"] + 0.5 < earned["Thompson sampling"] < earned["Gittins index"] - 0.5
    assert earned["Gittins index"] == pytest.approx(6.6, abs=0.2)


def test_the_command_prints_a_row_per_policy(capsys):
    bandit_policies.main(["--arms", "2", "--pulls", "3", "--bandits", "20"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["2", "random", "Thompson", "Gittins"]
    assert "--arms = 1" in error_of(capsys, bandit_policies.main, ["--arms", "1"])
