"""Outer optimisers on small problems: against other implementations, closed forms and themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl import PPO, TRPO, Adam, Reptile
from metarl.core.adaptation import GradientDescent, MetaSGD
from metarl.core.parameters import expand_over_tasks
from metarl.rl.estimators import clipped_surrogate, lvc, score, surrogate
from metarl.rl.objective import MetaObjective
from metarl.rl.outer import adam_state, adam_step
from tests.metarl.rl.test_estimators import FAMILY, TASKS, Problem
from tests.metarl.rl.test_learner import navigation_learner, same, without_times
from tests.probes import finite_differences

RNG = np.random.default_rng(0)


def first_update(outer, objective, vector):
    return outer.update(objective, vector, RNG, outer.start(vector, len(objective.supports)))


def test_adam_is_that_of_torch():
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(6, dtype=torch.float64))
    other = torch.optim.Adam([parameter], lr=0.03)
    vector, state = parameter.detach().clone(), adam_state(parameter.detach())
    for _ in range(5):
        gradient = torch.randn(6, dtype=torch.float64)
        parameter.grad = gradient.clone()
        other.step()
        vector, state = adam_step(vector, gradient, state, 0.03)
    torch.testing.assert_close(vector, parameter.detach())


def test_adam_steps_along_the_meta_gradient_and_keeps_its_moments():
    problem = Problem(GradientDescent(0.3))
    objective = problem.objective()
    one, state, outcome = first_update(Adam(0.01), objective, problem.vector)
    gradient = objective.loss_and_gradient(problem.vector)[1]
    torch.testing.assert_close(one, adam_step(problem.vector, gradient, adam_state(gradient), 0.01)[0])
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
    theta = {name: value.view(problem.like[name].shape) for name, value in _unflat(problem, elsewhere).items()}
    first = 0.0
    for task in range(TASKS):
        outputs = torch.func.functional_call(problem.policy, theta, (support.observations[task],))
        first += (support.weights[task] * FAMILY.kl(support.distribution[task], outputs)).sum().item() / TASKS
    assert found[0].item() == pytest.approx(first)
    torch.testing.assert_close(
        problem.objective().inner_kls(problem.vector), torch.zeros(2).double(), atol=1e-12, rtol=0
    )


def _unflat(problem, vector):
    pieces = vector.split([value.numel() for value in problem.like.values()])
    return dict(zip(problem.like, pieces, strict=True))


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
    first_update(TRPO(product_fraction=0.5), problem.objective(), problem.vector)
    assert taken == [0.5] * 10


@pytest.mark.parametrize(("factor", "expected"), [(1.4, 1.0), (1.6, 0.5), (1 / 1.4, 1.0), (1 / 1.6, 2.0)])
def test_penalties_follow_the_inner_kl(factor, expected):
    problem = Problem(GradientDescent(0.3))
    objective = problem.objective()
    _, state, outcome = first_update(PPO(0.01, penalty=0.1), objective, problem.vector)
    reached = outcome.details["inner_kl/step_0"]
    _, state, outcome = first_update(PPO(0.01, penalty=0.1, inner_kl=reached * factor), objective, problem.vector)
    assert state["penalties"].item() == pytest.approx(0.1 * expected)
    assert outcome.details["inner_kl_penalty/step_0"] == pytest.approx(0.1)  # the one that was used


def test_a_large_penalty_holds_the_inner_policy():
    problem = Problem(GradientDescent(0.3))
    kls = [
        first_update(PPO(0.01, epochs=10, penalty=eta), problem.objective(), problem.vector)[2].details[
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
        for name, change in _unflat(problem, moved - problem.vector).items():
            expected = 0.25 * (phi[name].mean(dim=0) - problem.like[name]) if name in phi else torch.zeros(change.shape)
            torch.testing.assert_close(change, expected.detach().flatten().to(change))
        assert state == {}
        assert outcome.gradient_norm == pytest.approx((moved - problem.vector).norm().item() / 0.25)
        torch.testing.assert_close(
            problem.objective(chunk=1).displacement(problem.vector) * 0.25, moved - problem.vector
        )


def _leaves(problem):
    rows = expand_over_tasks(problem.like, TASKS)
    return {name: value.clone().requires_grad_() for name, value in rows.items()}


@pytest.mark.parametrize("outer", [PPO(0.01), Adam(0.01), Reptile(0.5)], ids=["ppo", "adam", "reptile"])
def test_every_optimiser_learns_and_a_loaded_state_continues_bit_for_bit(outer):
    unbroken = navigation_learner(outer=outer, rule=GradientDescent(0.2, steps=2))
    figures = [unbroken.step() for _ in range(2)]
    assert figures[0]["accepted"] == 1
    assert 0 < figures[0]["kl"] < 0.2
    resumed = navigation_learner(outer=outer, rule=GradientDescent(0.2, steps=2))
    resumed.load_state_dict(unbroken.state_dict())
    assert without_times(resumed.step()) == without_times(unbroken.step())
    assert same(resumed.theta, unbroken.theta)


def test_emamls_term_changes_the_meta_gradient_and_is_refused_where_it_would_count_twice():
    plain, exploring = navigation_learner(), navigation_learner(initial_sampling=True)
    figures = [learner.step() for learner in (plain, exploring)]
    assert figures[0]["return/step_1"] == figures[1]["return/step_1"]
    assert figures[0]["meta_gradient_norm"] != pytest.approx(figures[1]["meta_gradient_norm"], rel=1e-2)
    with pytest.raises(ValueError, match="with the estimator lvc, which holds part of that term; allowed: score"):
        replace(plain, estimator=lvc, initial_sampling=True)
