"""Trials as sequences, against loops over tasks, episodes and steps."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from metarl.rl.action_distributions import Categorical, DiagonalGaussian
from metarl.rl.episodes import Episodes
from metarl.rl.rl2.trials import Trials, standardised, to_trials, trial_advantages

LENGTHS = torch.tensor([[2, 4, 1], [4, 4, 3]])  # of two trials of three episodes
TIME, SIZE = 4, 2


def episodes(discrete=True):
    """Random episodes, with zeros after their ends."""
    generator = torch.Generator().manual_seed(0)
    valid = torch.arange(TIME).view(1, -1, 1) < LENGTHS.unsqueeze(1)
    shape = tuple(valid.shape)

    def random(*more):
        values = torch.randn(*shape, *more, generator=generator)
        return torch.where(valid.view(*shape, *[1] * len(more)), values, 0)

    actions = torch.randint(3, shape, generator=generator) * valid if discrete else random(3)
    return Episodes(
        observations=random(SIZE),
        actions=actions,
        dist_params=random(3 if discrete else 6),
        log_probs=random(),
        rewards=random(),
        valid=valid,
        terminated=torch.tensor([[True, False, True], [False, False, True]]),
        final_observations=torch.randn(*LENGTHS.shape, SIZE, generator=generator),
        failed=torch.zeros(LENGTHS.shape, dtype=torch.bool),
    )


def steps_of(played, task):
    """The valid steps of a trial as (time step, episode), in the order in which they were played."""
    return [(t, e) for e in range(3) for t in range(int(LENGTHS[task, e]))]


@pytest.mark.parametrize("discrete", [True, False])
def test_sequences_equal_a_loop(discrete):
    played = episodes(discrete)
    family = Categorical(Discrete(3)) if discrete else DiagonalGaussian(Box(-1, 1, (3,), np.float64))
    values, learned = torch.randn(2, TIME, 3), played.rewards - 1
    trials = to_trials(played, learned, values, family)
    assert trials.valid.sum(dim=1).tolist() == [7, 11]
    for task in range(2):
        previous = torch.zeros(5)  # action of three numbers, reward, end
        for step, (t, e) in enumerate(steps_of(played, task)):
            at = (task, t, e)
            expected = torch.cat([played.observations[at], previous])
            torch.testing.assert_close(trials.inputs[task, step], expected)
            for name in ("actions", "dist_params", "log_probs"):
                assert torch.equal(getattr(trials, name)[task, step], getattr(played, name)[at])
            assert (trials.values[task, step], trials.rewards[task, step]) == (values[at], learned[at])
            action = played.actions[at]
            encoded = torch.eye(3)[action] if discrete else action
            ended = torch.tensor([played.rewards[at], float(t == LENGTHS[task, e] - 1)])
            previous = torch.cat([encoded, ended])
    assert not trials.inputs[0, 7:].any()
    assert not trials.valid[0, 7:].any()


def random_trials(lengths=(5, 3)):
    generator = torch.Generator().manual_seed(2)
    valid = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    numbers = [torch.where(valid, torch.randn(valid.shape, generator=generator), 0).double() for _ in range(2)]
    nothing = torch.zeros(*valid.shape, 1)
    return Trials(nothing, nothing, nothing, nothing, *numbers, valid)


def test_advantages_equal_a_loop_over_the_whole_trial():
    trials = random_trials()
    advantages, returns = trial_advantages(trials, discount=0.9, gae_lambda=0.8)
    for trial, length in enumerate((5, 3)):
        following = 0.0
        for step in reversed(range(length)):
            next_value = trials.values[trial, step + 1] if step + 1 < length else 0.0
            delta = trials.rewards[trial, step] + 0.9 * next_value - trials.values[trial, step]
            following = delta + 0.9 * 0.8 * following
            assert advantages[trial, step] == pytest.approx(float(following))
            assert returns[trial, step] == pytest.approx(float(following + trials.values[trial, step]))
        assert not advantages[trial, length:].any()
        assert not returns[trial, length:].any()


def test_an_action_is_credited_with_the_rewards_of_later_episodes():
    played = episodes()
    rewards = torch.zeros_like(played.rewards)
    rewards[1, 2, 2] = 1.0  # in the last step of the last episode
    trials = to_trials(played, rewards, torch.zeros(2, TIME, 3), Categorical(Discrete(3)))
    advantages, _ = trial_advantages(trials, discount=0.9, gae_lambda=1.0)
    np.testing.assert_allclose(advantages[1], 0.9 ** np.arange(10, -1, -1), rtol=1e-6)
    assert not advantages[0].any()


def test_advantages_are_standardised_over_all_trials_together():
    trials = random_trials()
    found = standardised(trials.rewards, trials.valid)
    valid = trials.rewards[trials.valid]
    expected = (valid - valid.mean()) / valid.std(correction=0)
    torch.testing.assert_close(found[trials.valid], expected)
    assert not found[~trials.valid].any()


def test_some_of_the_trials():
    trials = random_trials((5, 3, 4))
    some = trials.at(torch.tensor([2, 0]))
    assert torch.equal(some.rewards, trials.rewards[[2, 0]])
    assert some.valid.sum(dim=1).tolist() == [4, 5]
