"""What learning sees of episodes: advantages as the settings say, bonus and penalty, beside returns without them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl.rl.advantages import discounted_returns
from metarl.rl.episodes import to_samples
from metarl.rl.estimators import outcomes
from metarl.rl.evaluation import held_out_tasks
from tests.builders import corridor_learner, estimate_advantages, navigation_learner


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"discount": 0.9, "gae_lambda": 0.7, "weighting": "episode"},
        {"gae_lambda": 0.9, "support_lambda": 0.0},
        {"bootstrap": True},
        {"baseline": "quadratic"},
    ],
)
def test_samples_are_made_as_the_settings_say(changes):
    learner = navigation_learner(**changes)
    settings = {"discount": 0.99, "gae_lambda": 1.0, "weighting": "timestep", **changes}
    weighting = settings.pop("weighting")
    support = settings.pop("support_lambda", settings["gae_lambda"])
    for at, gae_lambda in zip(learner.adapt(held_out_tasks(learner, 4), 2), [support, support, None], strict=True):
        own = settings if gae_lambda is None else {**settings, "gae_lambda": gae_lambda}
        advantages, explained, std = estimate_advantages(at.episodes, **own)
        expected = to_samples(at.episodes, advantages, weighting).packed()
        assert torch.equal(at.samples.advantages, expected.advantages)
        assert torch.equal(at.samples.weights, expected.weights)
        assert torch.equal(at.values.explained_variance, explained)
        assert torch.equal(at.advantage_std, std)


@pytest.mark.parametrize("sampling", [False, True])
def test_learning_sees_a_bonus_for_survival_that_returns_do_not_show(sampling):
    lengths = (2, 4, 6)
    learner = corridor_learner(episodes_per_task=5, survival_bonus=2.0, initial_sampling=sampling)
    path = learner.adapt({"length": np.array(lengths)}, 1)
    for at in path:
        paid = (at.episodes.actions * torch.arange(1, 7).view(1, 6, 1) * at.episodes.valid).sum(dim=1)
        assert torch.equal(at.episodes.returns, paid.to(at.episodes.returns.dtype))
        seen = at.episodes.rewards.clone()
        for task, length in enumerate(lengths):
            seen[task, :length] += 2.0
        advantages, explained, std = estimate_advantages(replace(at.episodes, rewards=seen))
        assert torch.equal(at.samples.advantages, to_samples(at.episodes, advantages).packed().advantages)
        assert torch.equal(at.values.explained_variance, explained)
        assert torch.equal(at.advantage_std, std)
    if sampling:
        returns = discounted_returns(seen, 0.99)[:, 0]
        expected = outcomes(returns, path[-1].episodes.lengths, path[-1].advantage_std)
        torch.testing.assert_close(learner.objective(path).outcomes, expected)


def test_learning_sees_a_penalty_for_actions_beyond_their_bounds_that_returns_do_not_show():
    learner = navigation_learner(bounds_penalty=0.5, survival_bonus=0.25)
    for at in learner.adapt(held_out_tasks(learner, 4), 1):
        paid = at.episodes.rewards.sum(dim=1).double()
        torch.testing.assert_close(at.episodes.returns.double(), paid)
        beyond = (at.episodes.actions.abs() - 1).clamp(min=0) ** 2
        seen = at.episodes.rewards + at.episodes.valid * (0.25 - 0.5 * (beyond[..., 0] + beyond[..., 1]))
        advantages, explained, _ = estimate_advantages(replace(at.episodes, rewards=seen))
        expected = to_samples(at.episodes, advantages).packed().advantages
        torch.testing.assert_close(at.samples.advantages, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(at.values.explained_variance, explained, rtol=1e-4, atol=1e-4)
