"""Returns and advantages against hand-computed values and slow loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl.core.settings import SettingError
from metarl.rl.advantages import (
    Advantages,
    discounted_returns,
    explained_variance,
    fit_values,
    generalised_advantages,
    mean_and_std,
    standardise,
)
from metarl.rl.baseline import BASELINES
from metarl.rl.episodes import Episodes
from tests.builders import estimate_advantages
from tests.probes import ragged_episodes


def slow_features(o, t, baseline):
    """The baseline's features of one step."""
    o = o.clip(-10, 10)
    products = [o[i] * o[j] for i in range(len(o)) for j in range(i)] if baseline == "quadratic" else []
    return np.array([*o, *o**2, *products, t / 100, (t / 100) ** 2, (t / 100) ** 3, 1])


def slow_advantages(episodes, task, discount, gae_lambda, bootstrap, baseline):
    """The definition, one episode and one step at a time, for one task; a list of arrays, one per episode."""
    lengths = episodes.lengths[task].tolist()
    paths = []
    for episode, length in enumerate(lengths):
        observations = episodes.observations[task, :length, episode].numpy()
        features = np.stack([slow_features(o, t * (not bootstrap), baseline) for t, o in enumerate(observations)])
        r = episodes.rewards[task, :length, episode].numpy()
        returns = np.array([sum(discount ** (j - i) * r[j] for j in range(i, length)) for i in range(length)])
        end = np.zeros(features.shape[1])
        if bootstrap and not episodes.terminated[task, episode]:
            end = slow_features(episodes.final_observations[task, episode].numpy(), 0, baseline)
        left = discount ** np.arange(length, 0, -1)
        paths.append((features, r, returns, end, features - np.outer(left, end)))
    x, y = np.vstack([p[4] for p in paths]), np.concatenate([p[2] for p in paths])
    weights = np.linalg.solve(x.T @ x + 1e-5 * np.eye(x.shape[1]), x.T @ y)
    advantages = []
    for features, r, _, end, _ in paths:
        values = np.append(features @ weights, end @ weights)
        deltas = r + discount * values[1:] - values[:-1]
        steps = len(r)
        decay = discount * gae_lambda
        advantages.append(np.array([sum(decay ** (j - i) * deltas[j] for j in range(i, steps)) for i in range(steps)]))
    flat = np.concatenate(advantages)
    return [(a - flat.mean()) / flat.std() for a in advantages]


def test_discounted_returns_by_hand():
    rewards = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1)
    assert discounted_returns(rewards, 0.5).flatten().tolist() == [3.0, 4.0, 4.0]


def test_generalised_advantages_by_hand():
    rewards = torch.tensor([1.0, 2.0, 0.0]).view(1, 3, 1)
    values = torch.tensor([0.5, 1.0, 99.0]).view(1, 3, 1)  # the last step is padding
    valid = torch.tensor([True, True, False]).view(1, 3, 1)
    # delta_1 = 2 - 1 = 1, delta_0 = 1 + 0.5 * 1 - 0.5 = 1, A_0 = 1 + 0.5 * 0.5 * 1
    found = generalised_advantages(rewards, values, valid, discount=0.5, gae_lambda=0.5)
    assert found.flatten().tolist() == [1.25, 1.0, 0.0]
    with_end = generalised_advantages(rewards, values, valid, 0.5, 0.5, final_values=torch.tensor([[4.0]]))
    assert with_end.flatten().tolist() == [1.75, 3.0, 0.0]


def test_lambda_one_is_the_return_minus_the_value():
    episodes = ragged_episodes([[7, 7, 7]])
    values = torch.randn(1, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = generalised_advantages(episodes.rewards, values, episodes.valid, 0.9, 1.0)
    torch.testing.assert_close(found, discounted_returns(episodes.rewards, 0.9) - values)


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("baseline", BASELINES)
def test_batched_and_padded_equals_one_ragged_episode_at_a_time(bootstrap, terminated, baseline):
    episodes = ragged_episodes([[7, 3, 5], [4, 7, 1]], observations=3, terminated=terminated)
    advantages, _, _ = estimate_advantages(episodes, 0.95, 0.8, bootstrap, baseline)
    for task in range(2):
        slow = slow_advantages(episodes, task, 0.95, 0.8, bootstrap, baseline)
        for episode, expected in enumerate(slow):
            found = advantages[task, :, episode].numpy()
            np.testing.assert_allclose(found[: len(expected)], expected, rtol=1e-6, atol=1e-6)
            assert (found[len(expected) :] == 0).all()


def test_only_bootstrapping_tells_the_time_limit_from_an_end():
    cut, ended = ragged_episodes([[5, 7]], terminated=False), ragged_episodes([[5, 7]], terminated=True)
    assert torch.equal(*(estimate_advantages(episodes, bootstrap=False)[0] for episodes in (cut, ended)))
    assert not torch.allclose(
        *(estimate_advantages(episodes, bootstrap=True)[0] for episodes in (cut, ended)), atol=0.1
    )


def test_bootstrapping_sees_that_a_reward_of_one_goes_on_for_ever():
    episodes = ragged_episodes([[40, 50, 50]], horizon=50, terminated=False)
    endless = replace(episodes, rewards=episodes.valid.double())
    _, explained, std = estimate_advantages(endless, 0.99, 1.0, bootstrap=True)
    assert std.item() < 1e-3  # the value is 1 / (1 - 0.99) in every state, and no action is better than others
    assert explained.item() <= 1
    _, _, plain = estimate_advantages(endless, 0.99, 1.0)
    assert plain.item() > 0.1


def test_absent_episodes_do_not_disturb_bootstrapping():
    episodes = ragged_episodes([[5, 7], [6, 0]], terminated=False)
    alone = estimate_advantages(episodes.of_tasks(slice(0, 1)), bootstrap=True)[0]
    torch.testing.assert_close(estimate_advantages(episodes, bootstrap=True)[0][:1], alone)


def test_padding_content_never_matters():
    episodes = ragged_episodes([[7, 3], [2, 5]])
    garbage = torch.where(episodes.valid.unsqueeze(-1), episodes.observations, 1e6)
    changed = Episodes(**{**vars(episodes), "observations": garbage})
    torch.testing.assert_close(estimate_advantages(episodes)[0], estimate_advantages(changed)[0])


def test_one_chunk_of_tasks_equals_many(monkeypatch):
    episodes = ragged_episodes([[7, 3], [2, 5], [6, 6]])
    whole = estimate_advantages(episodes)
    monkeypatch.setattr("metarl.rl.advantages._FEATURE_BUDGET", 1)
    torch.testing.assert_close(estimate_advantages(episodes), whole)


def test_tasks_do_not_share_a_baseline():
    episodes = ragged_episodes([[7, 3], [2, 5]])
    rewards = episodes.rewards.clone()
    rewards[1] *= 100
    changed = Episodes(**{**vars(episodes), "rewards": rewards})
    assert torch.equal(estimate_advantages(episodes)[0][0], estimate_advantages(changed)[0][0])


def test_standardised_over_the_valid_steps_of_each_task():
    episodes = ragged_episodes([[7, 3], [2, 5]])
    found = standardise(episodes.rewards * 3 + 5, episodes.valid)
    for task in range(2):
        values = found[task][episodes.valid[task]]
        assert values.mean().item() == pytest.approx(0, abs=1e-7)
        assert values.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert (found[~episodes.valid] == 0).all()


def test_a_quadratic_baseline_explains_returns_of_products():
    episodes = ragged_episodes([[40] * 9], observations=3, horizon=40)
    o = episodes.observations
    produced = replace(episodes, rewards=o[..., 0] * o[..., 2])
    explained = [estimate_advantages(produced, 0.0, baseline=baseline)[1].item() for baseline in BASELINES]
    assert explained[0] < 0.2
    assert explained[1] == pytest.approx(1, abs=1e-6)


def test_explained_variance_by_hand():
    returns = torch.tensor([1.0, 3.0, 0.0]).view(1, 3, 1)
    valid = torch.tensor([True, True, False]).view(1, 3, 1)
    assert explained_variance(returns, returns, valid).item() == 1
    assert explained_variance(torch.full_like(returns, 2.0), returns, valid).item() == 0
    assert explained_variance(torch.tensor([0.5, 1.5, 7.0]).view(1, 3, 1), returns, valid).item() == 0.75


def test_the_std_has_the_units_of_the_reward_and_what_is_explained_has_none():
    episodes = ragged_episodes([[7, 3, 5], [4, 7, 6]])
    advantages, explained, std = estimate_advantages(episodes, 0.95, 0.8)
    found = estimate_advantages(replace(episodes, rewards=10 * episodes.rewards), 0.95, 0.8)
    torch.testing.assert_close(found, (advantages, explained, 10 * std))
    assert ((explained > 0) & (explained < 1)).all()


def test_a_baseline_that_cannot_be_fitted_names_its_task(monkeypatch):
    monkeypatch.setattr("metarl.rl.advantages._FEATURE_BUDGET", 1)  # one task at a time
    episodes = ragged_episodes([[7, 3], [4, 7], [5, 5]])
    episodes.rewards[2] = torch.nan
    with pytest.raises(ArithmeticError, match="the baseline of task 12 cannot be fitted"):
        fit_values(episodes, first_task=10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("discount", 1.5),
        ("gae_lambda", -3.0),
        ("support_lambda", 1.1),
        ("survival_bonus", float("nan")),
        ("bounds_penalty", -0.1),
        ("bootstrap", 1),
        ("baseline", "cubic"),
        ("weighting", "step"),
    ],
)
def test_settings_out_of_bounds_name_their_field(field, value):
    with pytest.raises(SettingError, match=rf"^{field} = "):
        Advantages(**{field: value})


def test_the_lambda_of_support_data_is_that_of_all_unless_it_has_its_own():
    assert [Advantages(gae_lambda=0.9).gae_lambda_of(support) for support in (True, False)] == [0.9, 0.9]
    own = Advantages(gae_lambda=0.9, support_lambda=0.0)
    assert [own.gae_lambda_of(support) for support in (True, False)] == [0.0, 0.9]


def test_means_and_deviations_by_hand():
    values = torch.tensor([1.0, 3.0, 99.0]).view(1, 3, 1)
    mean, std = mean_and_std(values, torch.tensor([True, True, False]).view(1, 3, 1))
    assert (mean.item(), std.item()) == (2.0, 1.0)
