"""Outer optimisers on small problems: against other implementations, closed forms and themselves."""

import math

import numpy as np
import pytest
import torch

from metarl import PPO, TRPO, Adam, Reptile
from metarl.core.adam import adam_step, initial_adam_state
from metarl.core.parameters import expand_over_tasks, require_alike, unravel
from metarl.core.rules import GradientDescent, MetaSGD
from metarl.core.settings import SettingError
from metarl.rl.estimators import clipped_surrogate, score, surrogate
from metarl.rl.objective import MetaObjective
from tests.builders import navigation_learner, same, without_times
from tests.metarl.rl.problems import FAMILY, TASKS, Problem
from tests.probes import finite_differences

RNG = np.random.default_rng(0)


def first_update(outer, objective, vector):
    return outer.update(objective, vector, RNG, outer.start(vector, len(objective.supports)))


def test_adam_steps_along_the_meta_gradient_and_keeps_its_moments():
    problem = Problem(GradientDescent(0.3))
    objective = problem.objective()
    one, state, outcome = first_update(Adam(0.01), objective, problem.vector)
    gradient = objective.loss_and_gradient(problem.vector)[1]
    x = {"theta": problem.vector}
    expected, _ = adam_step(x, {"theta": gradient}, initial_adam_state(x), 0.01)
    assert torch.equal(one, expected["theta"])
    assert outcome.loss_after < outcome.loss_before
    assert outcome.gradient_norm == pytest.approx(gradient.norm().item())
    two, _, _ = Adam(0.01).update(objective, one, RNG, state)
    assert not torch.allclose(two, first_update(Adam(0.01), objective, one)[0])


def test_the_penalised_and_clipped_loss_has_its_own_gradient():
    problem = Problem(GradientDescent(0.3, 2), score)
    objective, penalties = problem.objective(), torch.tensor([0.7, 1.9]).double()

    def clipped(distribution, outputs, samples):
        return clipped_surrogate(distribution, outputs, samples, 0.2)

    elsewhere = problem.vector + 0.1 * torch.randn_like(problem.vector)
    loss, gradient = objective.loss_and_gradient(elsewhere, clipped, penalties)
    expected = finite_differences(lambda v: objective.loss_and_gradient(v, clipped, penalties)[0], elsewhere)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)
    plain, _ = objective.loss_and_gradient(elsewhere, clipped)
    torch.testing.assert_close(loss - plain, penalties @ objective.inner_kls(elsewhere))
    assert (objective.inner_kls(elsewhere) > 1e-4).all()


def test_inner_kls_are_those_of_each_task_and_step_and_chunks_change_nothing():
    problem = Problem(GradientDescent(0.3, 2))
    elsewhere = problem.vector + 0.1 * torch.randn_like(problem.vector)
    found = problem.objective().inner_kls(elsewhere)
    torch.testing.assert_close(problem.objective(chunk=1).inner_kls(elsewhere), found)
    support = problem.supports[0]
    theta = unravel(elsewhere, problem.like)
    first = 0.0
    for task in range(TASKS):
        outputs = torch.func.functional_call(problem.policy, theta, (support.observations[task],))
        first += (support.weights[task] * FAMILY.kl(support.dist_params[task], outputs)).sum().item() / TASKS
    assert found[0].item() == pytest.approx(first)
    torch.testing.assert_close(
        problem.objective().inner_kls(problem.vector), torch.zeros(2).double(), atol=1e-12, rtol=0
    )


def test_ppo_with_one_epoch_is_adam_and_with_more_goes_on():
    problem = Problem(GradientDescent(0.3, 2), surrogate)
    objective = problem.objective()
    adam = first_update(Adam(0.01), objective, problem.vector)[0]
    torch.testing.assert_close(first_update(PPO(0.01, epochs=1), objective, problem.vector)[0], adam)
    more, _, outcome = first_update(PPO(0.01, epochs=5), objective, problem.vector)
    assert (more - problem.vector).norm() > 2 * (adam - problem.vector).norm()
    assert outcome.loss_after < outcome.loss_before
    assert set(outcome.details) == {f"inner_kl{kind}/step_{s}" for kind in ("", "_penalty") for s in (0, 1)}


def test_a_step_of_trpo_takes_ten_products(monkeypatch):
    problem = Problem(GradientDescent(0.3))
    products, taken = MetaObjective.kl_products, []

    def counted(self, vector, fraction, rng):
        product = products(self, vector, fraction, rng)
        return lambda v: taken.append(fraction) or product(v)

    monkeypatch.setattr(MetaObjective, "kl_products", counted)
    first_update(TRPO(hvp_sample_fraction=0.5), problem.objective(), problem.vector)
    assert taken == [0.5] * 10


@pytest.mark.parametrize(("factor", "expected"), [(1.4, 1.0), (1.6, 0.5), (1 / 1.4, 1.0), (1 / 1.6, 2.0)])
def test_penalties_follow_the_inner_kl(factor, expected):
    problem = Problem(GradientDescent(0.3))
    objective = problem.objective()
    _, state, outcome = first_update(PPO(0.01, inner_kl_penalty=0.1), objective, problem.vector)
    reached = outcome.details["inner_kl/step_0"]
    _, state, outcome = first_update(
        PPO(0.01, inner_kl_penalty=0.1, inner_kl=reached * factor), objective, problem.vector
    )
    assert state["penalties"].item() == pytest.approx(0.1 * expected)
    assert outcome.details["inner_kl_penalty/step_0"] == pytest.approx(0.1)  # the one that was used


def test_a_large_penalty_holds_the_inner_policy():
    problem = Problem(GradientDescent(0.3))
    kls = [
        first_update(PPO(0.01, epochs=10, inner_kl_penalty=eta), problem.objective(), problem.vector)[2].details[
            "inner_kl/step_0"
        ]
        for eta in (0.0, 1000.0)
    ]
    assert kls[1] < 0.5 * kls[0]


def test_reptile_moves_towards_the_mean_of_the_adapted_parameters():
    for rule in (GradientDescent(0.3, 2), MetaSGD(0.3, 2)):
        problem = Problem(rule)
        objective = problem.objective()
        moved, state, outcome = first_update(Reptile(0.25), objective, problem.vector)
        phi = objective._path(_leaves(problem), problem.supports, slice(0, TASKS))[-1]
        for name, change in unravel(moved - problem.vector, problem.like).items():
            expected = 0.25 * (phi[name].mean(dim=0) - problem.like[name]) if name in phi else torch.zeros_like(change)
            torch.testing.assert_close(change, expected.detach().to(change))
        assert state == {}
        assert outcome.gradient_norm == pytest.approx((moved - problem.vector).norm().item() / 0.25)
        torch.testing.assert_close(
            problem.objective(chunk=1).reptile_gradient(problem.vector) * -0.25, moved - problem.vector
        )


def _leaves(problem):
    rows = expand_over_tasks(problem.like, TASKS)
    return {name: value.clone().requires_grad_() for name, value in rows.items()}


@pytest.mark.parametrize("outer", [PPO(0.01), Adam(0.01), Reptile(0.5)], ids=["ppo", "adam", "reptile"])
def test_every_optimiser_learns_and_a_loaded_state_continues_bit_for_bit(outer):
    unbroken = navigation_learner(outer=outer, rule=GradientDescent(0.2, inner_steps=2))
    metrics = [unbroken.step() for _ in range(2)]
    assert metrics[0]["accepted"] == 1
    assert 0 < metrics[0]["kl"] < 0.2
    resumed = navigation_learner(outer=outer, rule=GradientDescent(0.2, inner_steps=2))
    resumed.load_state_dict(unbroken.state_dict())
    assert without_times(resumed.step()) == without_times(unbroken.step())
    assert same(resumed.theta, unbroken.theta)


def test_emamls_term_changes_the_meta_gradient():
    plain, exploring = navigation_learner(), navigation_learner(initial_sampling=True)
    metrics = [learner.step() for learner in (plain, exploring)]
    assert metrics[0]["return/step_1"] == metrics[1]["return/step_1"]
    assert metrics[0]["meta_gradient_norm"] != pytest.approx(metrics[1]["meta_gradient_norm"], rel=1e-2)


def test_ppo_hands_the_moments_of_adam_on_to_its_next_update():
    """Ten Adam steps on one objective are two updates of five."""
    problem = Problem(GradientDescent(0.3))
    objective = problem.objective()
    whole, _, _ = first_update(PPO(0.01, epochs=10, inner_kl_penalty=0.0), objective, problem.vector)
    ppo = PPO(0.01, epochs=5, inner_kl_penalty=0.0)
    half, state, _ = first_update(ppo, objective, problem.vector)
    assert state["adam"]["count"].item() == 5
    again, state, _ = ppo.update(objective, half, RNG, state)
    assert torch.equal(again, whole)
    assert state["adam"]["count"].item() == 10
    anew, _, _ = first_update(ppo, objective, half)
    assert not torch.allclose(anew, whole)


@pytest.mark.parametrize("outer", [TRPO(), Adam(), PPO(), Reptile()], ids=lambda outer: type(outer).__name__)
def test_later_states_have_the_names_and_shapes_of_the_first(outer):
    problem = Problem(GradientDescent(0.3, 2))
    first = outer.start(problem.vector, 2)
    _, later, _ = first_update(outer, problem.objective(), problem.vector)
    require_alike("state", later, first)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: TRPO(max_kl=-1.0), "max_kl"),
        (lambda: TRPO(max_kl=math.inf), "max_kl"),
        (lambda: TRPO(hvp_sample_fraction=0), "hvp_sample_fraction"),
        (lambda: TRPO(hvp_sample_fraction=1.1), "hvp_sample_fraction"),
        (lambda: Adam(-1.0), "step_size"),
        (lambda: PPO(epochs=0), "epochs"),
        (lambda: PPO(clip=0.0), "clip"),
        (lambda: PPO(inner_kl=0.0), "inner_kl"),
        (lambda: PPO(inner_kl_penalty=-1.0), "inner_kl_penalty"),
        (lambda: Reptile(0.0), "step_size"),
        (lambda: Reptile(1.5), "step_size"),
    ],
)
def test_settings_out_of_bounds_name_their_field(make, field):
    with pytest.raises(SettingError, match=rf"^{field} = "):
        make()
