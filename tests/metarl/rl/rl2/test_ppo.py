"""The loss of trials: its gradient through time against finite differences, its parts, its minibatches."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl.core.adam import initial_adam_state
from metarl.core.errors import NonFiniteError
from metarl.core.settings import SettingError
from metarl.envs import BernoulliBandits, Navigation2D
from metarl.rl.action_distributions import action_distribution_for
from metarl.rl.rl2.ppo import TrialObjective, TrialPPO, update
from metarl.rl.rl2.trials import Trials
from tests.metarl.rl.rl2.builders import recurrent, scattered

SETTINGS = TrialPPO(entropy_bonus=0.1, value_weight=0.7)


def objective(distribution=None, lengths=(5, 3, 6, 6), settings=SETTINGS, chunk=2, dtype=torch.float64):
    """An objective of random trials, whose probability ratios are about 1, some of them beyond the clip."""
    distribution = distribution or BernoulliBandits(3)
    policy, family = recurrent(distribution).to(dtype), action_distribution_for(distribution.action_space)
    valid = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    generator = torch.Generator().manual_seed(3)

    def random(*more):
        return torch.randn(*valid.shape, *more, generator=generator, dtype=dtype)

    inputs = random(policy.gru.input_size)
    with torch.no_grad():
        dist_params, values, _ = scattered(copy.deepcopy(policy), 0.1)(inputs)
    actions = random(2) if policy.discrete is False else torch.randint(3, valid.shape, generator=generator)
    log_probs = family.log_prob(dist_params, actions)
    trials = Trials(inputs, actions, dist_params, log_probs, random(), values, valid)
    return TrialObjective(policy, family, trials, random(), random(), settings, chunk)


def loss_by_loops(of, chosen):
    """The mean over all steps of some trials of -min(r A, clip(r) A) - bonus * H + weight * (V - R)^2 / 2."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for trial in chosen.tolist():
        length = int(of.trials.valid[trial].sum())
        dist_params, values, _ = of.policy(of.trials.inputs[trial : trial + 1, :length])
        for step in range(length):
            own, action = dist_params[0, step], of.trials.actions[trial, step]
            ratio = (of.action_distribution.log_prob(own, action) - of.trials.log_probs[trial, step]).exp()
            advantage = of.advantages[trial, step]
            clipped = ratio.clamp(1 - of.settings.clip, 1 + of.settings.clip)
            total = total - torch.minimum(ratio * advantage, clipped * advantage)
            total = total - of.settings.entropy_bonus * of.action_distribution.entropy(own)
            error = values[0, step] - of.returns[trial, step]
            total = total + of.settings.value_weight * 0.5 * error.square()
            count += 1
    return total / count


@pytest.mark.parametrize("distribution", [BernoulliBandits(3), Navigation2D()], ids=["categorical", "gaussian"])
def test_the_gradient_through_time_equals_finite_differences(distribution):
    of, chosen = objective(distribution), torch.tensor([0, 2, 1])
    gradients, _ = of.gradient(chosen)
    rng, size = np.random.default_rng(0), 1e-6
    for (name, value), gradient in zip(of.policy.named_parameters(), gradients, strict=True):
        for _ in range(3):
            at = tuple(rng.integers(value.shape))
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    value[at] += sign * size
                    ends.append(loss_by_loops(of, chosen).item())
                    value[at] -= sign * size
            assert gradient[at].item() == pytest.approx((ends[0] - ends[1]) / (2 * size), abs=1e-8), name


def test_the_gradient_is_not_that_of_single_steps_with_stored_memories():
    """Replaying single steps would leave the recurrent weights without what they do to later steps."""
    of = objective()
    gradients, _ = of.gradient(torch.arange(4))
    by_name = dict(zip(dict(of.policy.named_parameters()), gradients, strict=True))
    memory, total = None, 0.0
    for step in range(6):
        dist_params, values, memory = of.policy(of.trials.inputs[:, step : step + 1], memory)
        memory = memory.detach()
        valid = of.trials.valid[:, step]
        ratios = (
            of.action_distribution.log_prob(dist_params[:, 0], of.trials.actions[:, step])
            - of.trials.log_probs[:, step]
        ).exp()
        clipped = ratios.clamp(0.8, 1.2)
        terms = -torch.minimum(ratios * of.advantages[:, step], clipped * of.advantages[:, step])
        terms = terms - 0.1 * of.action_distribution.entropy(dist_params[:, 0])
        terms = terms + 0.35 * (values[:, 0] - of.returns[:, step]).square()
        total = total + torch.where(valid, terms, 0).sum()
    (total / of.trials.valid.sum()).backward()
    torch.testing.assert_close(by_name["action.weight"], of.policy.action.weight.grad)  # nothing later depends on it
    difference = (by_name["gru.weight_hh_l0"] - of.policy.gru.weight_hh_l0.grad).norm()
    assert difference > 0.3 * of.policy.gru.weight_hh_l0.grad.norm()


def test_chunks_change_nothing_and_threads_not_a_bit(two_threads):
    whole, _ = objective(chunk=4).gradient(torch.arange(4))
    parts, terms = objective(chunk=2).gradient(torch.arange(4))
    torch.testing.assert_close(whole, parts, atol=1e-12, rtol=1e-10)
    torch.set_num_threads(1)
    alone, same_terms = objective(chunk=2).gradient(torch.arange(4))
    assert all(map(torch.equal, parts, alone))
    assert terms == same_terms


def test_metrics_are_means_over_all_steps():
    of = objective()
    metrics, valid = of.metrics(), of.trials.valid
    dist_params, values, _ = of.policy(of.trials.inputs)
    family = of.action_distribution
    assert metrics["kl"] == pytest.approx(family.kl(of.trials.dist_params, dist_params)[valid].mean().item())
    assert metrics["kl"] > 0
    assert metrics["entropy"] == pytest.approx(family.entropy(dist_params)[valid].mean().item())
    assert metrics["value_loss"] == pytest.approx(0.5 * (values - of.returns)[valid].square().mean().item())
    ratios = (family.log_prob(dist_params, of.trials.actions) - of.trials.log_probs).exp()[valid]
    assert metrics["clipped_share"] == pytest.approx(((ratios - 1).abs() > 0.2).double().mean().item())
    assert 0 < metrics["clipped_share"] < 1


def test_each_epoch_visits_every_trial_once_in_parts_of_equal_size(monkeypatch):
    of, seen = objective(lengths=(4,) * 10, settings=TrialPPO(epochs=3, minibatches=4)), []
    gradient = TrialObjective.gradient

    def noted(self, trials):
        seen.append(trials.tolist())
        return gradient(self, trials)

    monkeypatch.setattr(TrialObjective, "gradient", noted)
    update(of, initial_adam_state(dict(of.policy.named_parameters())), np.random.default_rng(0))
    assert [len(trials) for trials in seen] == [3, 3, 2, 2] * 3
    epochs = [[trial for part in seen[4 * e : 4 * e + 4] for trial in part] for e in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_an_update_takes_adams_steps_with_gradients_of_bounded_norm():
    of = objective(settings=replace(SETTINGS, epochs=2, minibatches=1, max_gradient_norm=0.01, step_size=0.003))
    twin = copy.deepcopy(of.policy)
    adam = torch.optim.Adam(twin.parameters(), lr=0.003)
    same = replace(of, policy=twin)
    norms = []
    for _ in range(2):
        adam.zero_grad()
        loss_by_loops(same, torch.arange(4)).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.01).item())
        adam.step()
    before = initial_adam_state(dict(of.policy.named_parameters()))
    theta, state, outcome = update(of, before, np.random.default_rng(0))
    for name, value in twin.named_parameters():
        torch.testing.assert_close(theta[name], value.detach(), atol=1e-9, rtol=1e-7)
    assert outcome.gradient_norm == pytest.approx(norms[0])
    assert outcome.loss_after < outcome.loss_before
    assert (float(before["count"]), float(state["count"])) == (0, 2)


def test_a_gradient_that_is_not_finite_is_refused():
    of = objective()
    of.returns[0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="gradient"):
        update(of, initial_adam_state(dict(of.policy.named_parameters())), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("field", "value"),
    [("step_size", 0.0), ("epochs", 0), ("minibatches", 0), ("clip", 1.5), ("entropy_bonus", -1.0),
     ("value_weight", -1.0), ("max_gradient_norm", 0.0)],
)  # fmt: skip
def test_settings_out_of_bounds_are_refused(field, value):
    with pytest.raises(SettingError, match=f"{field} = "):
        TrialPPO(**{field: value})
