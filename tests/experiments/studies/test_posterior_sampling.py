"""PSRL on random decision processes: planning, the posterior, published values, the command."""

from itertools import product

import numpy as np
import pytest

from metarl.envs import RandomMDPs
from metarl.experiments.studies import posterior_sampling
from metarl.experiments.studies.posterior_sampling import Posterior, PosteriorStudy, optimal_policy, play
from tests.experiments.runner.helpers import error_of


def expected_return(mean_rewards, transitions, policy):
    """Of a policy (T, S), from state 0, by walking the distribution over states forwards."""
    states, total = np.eye(len(mean_rewards))[0], 0.0
    for actions in policy:
        here = np.arange(len(states))
        total += states @ mean_rewards[here, actions]
        states = states @ transitions[here, actions]
    return total


def test_planning_finds_the_best_of_all_policies():
    tasks = RandomMDPs(2, 2).sample(5, np.random.default_rng(0))
    plans = optimal_policy(tasks["mean_rewards"], tasks["transitions"], 3)
    for n in range(5):
        task = tasks["mean_rewards"][n], tasks["transitions"][n]
        best = max(expected_return(*task, np.reshape(policy, (3, 2))) for policy in product([0, 1], repeat=6))
        assert expected_return(*task, plans[:, n]) == pytest.approx(best)


def test_the_posterior_is_the_prior_at_first_and_close_to_the_truth_at_last():
    rng = np.random.default_rng(0)
    posterior = Posterior(4000, 3, 2)
    means, transitions = posterior.sample(rng)
    assert (means.mean(), means.std()) == pytest.approx((1.0, 1.0), abs=0.03)
    assert transitions.var() == pytest.approx(2 / 36, rel=0.05)  # of a flat Dirichlet distribution over 3 states
    agents = np.zeros(4000, int)
    for _ in range(99):
        posterior.add(agents, agents + 1, rng.normal(-2.0, 1.0, 4000), agents + 2)
    means, transitions = posterior.sample(rng)
    assert means[:, 0, 1].mean() == pytest.approx((1 - 2 * 99) / 100, abs=0.02)
    assert means[:, 0, 1].std() == pytest.approx(np.sqrt(0.01 + 0.0099), rel=0.05)  # of the posterior and of its mean
    assert transitions[:, 0, 1].mean(axis=0) == pytest.approx([1 / 102, 1 / 102, 100 / 102], abs=0.002)
    assert (means[:, 1, 0].mean(), means[:, 1, 0].std()) == pytest.approx((1.0, 1.0), abs=0.05)


def test_what_they_earn_is_in_order_and_near_what_was_published():
    """Duan et al. (2016), table 2, 10 episodes: a random policy 100.1, PSRL 38.0 more; ours earns 34 more."""
    study = PosteriorStudy(processes=400)
    earned = {name: play(study, name).sum(axis=0).mean() for name in ("random", "PSRL", "optimal")}
    assert earned["random"] == pytest.approx(100.1, abs=4)
    assert earned["PSRL"] - earned["random"] == pytest.approx(36, abs=5)  # on the same processes
    assert earned["optimal"] > earned["PSRL"] + 50


def test_later_episodes_of_psrl_earn_more():
    returns = play(PosteriorStudy(processes=400), "PSRL").mean(axis=1)
    assert returns[-3:].mean() > returns[:3].mean() + 3


def test_the_command_prints_a_row_per_policy(capsys):
    posterior_sampling.main(["--processes", "5", "--episodes", "2"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["2", "random", "PSRL", "optimal"]
    assert "--episodes = 0" in error_of(capsys, posterior_sampling.main, ["--episodes", "0"])
