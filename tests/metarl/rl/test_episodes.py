"""Episodes and samples: joined, cut and flattened, with values by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from metarl.rl.action_distributions import DiagonalGaussian
from metarl.rl.episodes import to_samples
from metarl.rl.estimators import dice, lvc, score, surrogate
from tests.builders import estimate_advantages
from tests.probes import ragged_episodes


def test_every_timestep_of_a_task_weighs_the_same_by_default():
    episodes = ragged_episodes([[1, 3], [2, 2]], horizon=3)
    samples = to_samples(episodes, episodes.rewards)
    expected = episodes.valid.flatten(1) / 4
    torch.testing.assert_close(samples.weights, expected.double())


def test_every_episode_weighs_the_same_on_request():
    episodes = ragged_episodes([[1, 3], [2, 2]], horizon=3)
    weights = to_samples(episodes, episodes.rewards, "episode").weights.view(2, 3, 2)
    torch.testing.assert_close(weights.sum(dim=1), torch.full((2, 2), 0.5, dtype=torch.float64))
    assert weights[0, 0].tolist() == pytest.approx([1 / 2, 1 / 6])


def test_samples_keep_step_and_episode_together():
    episodes = ragged_episodes([[3, 3]], horizon=3)
    samples = to_samples(episodes, episodes.rewards)
    assert torch.equal(samples.observations[0, 1 * 2 + 1], episodes.observations[0, 1, 1])
    chosen = samples.at(torch.tensor([0, 3]))
    assert torch.equal(chosen.observations[0, 1], episodes.observations[0, 1, 1])
    assert chosen.weights.tolist() == [[0.5, 0.5]]


def test_the_weights_of_a_few_of_many_samples_sum_to_one():
    episodes = ragged_episodes([[3000], [2000]], horizon=3000)
    chosen = to_samples(episodes, episodes.rewards).at(torch.tensor([7]))
    torch.testing.assert_close(chosen.weights, torch.ones_like(chosen.weights))


def test_unknown_weighting_is_refused():
    episodes = ragged_episodes([[3, 3]])
    with pytest.raises(ValueError, match=r"^weighting = 'task'"):
        to_samples(episodes, episodes.rewards, "task")


@pytest.mark.parametrize("weighting", ["timestep", "episode"])
def test_packed_samples_have_the_same_losses_and_gradients(weighting):
    episodes = ragged_episodes([[7, 2, 0, 1], [3, 3, 3, 5]])  # one episode is absent
    advantages, *_ = estimate_advantages(episodes)
    samples = to_samples(episodes, advantages, weighting)
    packed = samples.packed()
    assert packed.weights.shape == (2, 14)
    assert ((packed.weights > 0).sum(dim=1) == torch.tensor([10, 14])).all()
    family = DiagonalGaussian(Box(-1, 1, (1,), np.float64))
    for estimator in (score, surrogate, lvc):
        results = []
        for data in (samples, packed):
            outputs = (data.dist_params * 1.1).requires_grad_()
            losses = estimator(family, outputs, data)
            (gradient,) = torch.autograd.grad(losses.sum(), outputs)
            results.append((losses.detach(), gradient.sum(dim=1)))
        torch.testing.assert_close(*results)
    with pytest.raises(ValueError, match="whole episodes"):
        dice(family, packed.dist_params, packed)
    assert packed.packed() is packed


@pytest.mark.parametrize("weighting", ["timestep", "episode"])
def test_weights_of_each_task_sum_to_one(weighting):
    episodes = ragged_episodes([[1, 3], [7, 7]])
    weights = to_samples(episodes, episodes.rewards, weighting).weights
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("first", [False, True])
def test_success_that_only_some_episodes_report_counts_as_none_of_the_others(first):
    silent = ragged_episodes([[2, 3]])
    reporting = replace(ragged_episodes([[4, 1]], seed=1), succeeded=torch.tensor([[True, False]]))
    both = reporting.joined(silent) if first else silent.joined(reporting)
    assert both.succeeded.tolist() == [[True, False, False, False] if first else [False, False, True, False]]
    assert silent.joined(silent).succeeded is None


def test_an_episode_beyond_the_budget_has_neither_failed_nor_succeeded():
    episodes, everywhere = ragged_episodes([[3, 3, 3], [7, 7, 7]]), torch.ones(2, 3, dtype=torch.bool)
    found = replace(episodes, failed=everywhere, succeeded=everywhere).up_to(7)
    present = found.valid.any(dim=1)
    assert present.tolist() == [[True] * 3, [True, False, False]]
    assert torch.equal(found.failed, present)
    assert torch.equal(found.succeeded, present)


def test_returns_lengths_and_rates_count_what_is_there():
    """The last episode of the second task is absent."""
    episodes = ragged_episodes([[1, 3], [2, 0]], horizon=3)
    assert episodes.lengths.tolist() == [[1, 3], [2, 0]]
    assert episodes.env_steps == 6
    torch.testing.assert_close(episodes.returns[0, 1], episodes.rewards[0, :3, 1].sum())
    torch.testing.assert_close(episodes.mean_returns[1], episodes.returns[1, 0])
    failed = replace(episodes, failed=torch.tensor([[True, False], [True, False]]))
    assert failed.failure_rates.tolist() == [0.5, 1.0]
    assert episodes.success_rates.tolist() == [0, 0]


def test_a_bonus_reaches_valid_steps_alone():
    episodes = ragged_episodes([[1, 3]], horizon=3)
    bonus = torch.arange(1.0, 7.0, dtype=torch.float64).view(1, 3, 2)
    found = episodes.with_bonus(bonus)
    torch.testing.assert_close(found.rewards - episodes.rewards, torch.where(episodes.valid, bonus, 0))


def test_joined_episodes_are_those_of_both_with_the_longer_time_axis():
    one, other = ragged_episodes([[2, 1]], horizon=2), ragged_episodes([[4, 3, 1]], horizon=4, seed=1)
    both = one.joined(other)
    assert both.lengths.tolist() == [[2, 1, 4, 3, 1]]
    assert torch.equal(both.rewards[:, :2, :2], one.rewards)
    assert (both.rewards[:, 2:, :2] == 0).all()
    assert torch.equal(both.observations[:, :, 2:], other.observations)
    assert torch.equal(both.final_observations, torch.cat([one.final_observations, other.final_observations], dim=1))


def test_up_to_keeps_whole_episodes_and_the_most_that_a_task_takes():
    episodes = ragged_episodes([[3, 3, 3, 3], [6, 6, 6, 6]], horizon=6)
    found = episodes.up_to(7)
    assert found.lengths.tolist() == [[3, 3, 3], [6, 6, 0]]
    assert torch.equal(found.rewards[0], episodes.rewards[0, :, :3])
    assert (found.rewards[1, :, 2] == 0).all()


def test_whole_episodes_are_chosen_with_all_their_steps():
    samples = to_samples(ragged_episodes([[3, 3, 3]], horizon=3), torch.arange(9.0).double().view(1, 3, 3))
    chosen = samples.of_episodes(torch.tensor([0, 2]))
    assert chosen.advantages.tolist() == [[0, 2, 3, 5, 6, 8]]
    assert chosen.weights.tolist() == [pytest.approx([1 / 6] * 6)]
    assert chosen.time_steps == 3
    with pytest.raises(ValueError, match="whole episodes"):
        samples.at(torch.tensor([0, 1])).of_episodes(torch.tensor([0]))


def test_one_episode_of_every_trial_by_task():
    played = ragged_episodes([[1, 3, 2], [2, 2, 1], [4, 1, 1], [3, 2, 4]], horizon=4)  # four trials, two of each task
    second = played.episode(1, num_trials=2)
    assert second.valid.shape == (2, 4, 2)
    for task in range(2):
        for trial in range(2):
            row = 2 * task + trial
            assert torch.equal(second.observations[task, :, trial], played.observations[row, :, 1])
            assert torch.equal(second.final_observations[task, trial], played.final_observations[row, 1])
    assert second.lengths.tolist() == [[3, 2], [1, 2]]
    assert second.succeeded is None
