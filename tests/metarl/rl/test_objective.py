"""The meta-objective in float64: values and gradients against finite differences and slow, obvious oracles."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from metarl.core.errors import NonFiniteError
from metarl.core.parameters import ravel, unravel
from metarl.rl.estimators import surrogate
from metarl.rl.objective import _thin
from tests.metarl.rl.problems import NUM_TASKS, PLANE, StepProblem
from tests.probes import finite_differences, random_samples, tiny_theta


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_loss_and_kl_equal_one_task_at_a_time(steps):
    problem = StepProblem(steps)
    elsewhere = problem.vector + 0.1 * torch.randn_like(problem.vector)
    loss, kl = problem.slow_loss_and_kl(elsewhere.requires_grad_())
    found_loss, found_kl = problem.objective.evaluate(elsewhere.detach())
    torch.testing.assert_close(found_loss, loss)
    torch.testing.assert_close(found_kl, kl)
    torch.testing.assert_close(problem.objective.loss_and_gradient(elsewhere.detach())[0], loss)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_gradient_is_the_derivative_of_the_loss(steps):
    problem = StepProblem(steps)
    elsewhere = problem.vector + 0.05 * torch.randn_like(problem.vector)
    _, gradient = problem.objective.loss_and_gradient(elsewhere)
    expected = finite_differences(lambda v: problem.objective.evaluate(v)[0], elsewhere)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_change_nothing(chunk):
    whole, parts = StepProblem(2), StepProblem(2, chunk=chunk)
    for found, expected in zip(
        parts.objective.evaluate(parts.vector), whole.objective.evaluate(whole.vector), strict=True
    ):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        parts.objective.loss_and_gradient(parts.vector)[1], whole.objective.loss_and_gradient(whole.vector)[1]
    )
    v = torch.randn_like(whole.vector)
    for fraction in (1.0, 0.5):
        products = [p.objective.kl_products(p.vector, fraction, np.random.default_rng(0))(v) for p in (parts, whole)]
        torch.testing.assert_close(*products)


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1), (1.4, 1), (1.6, 2), (3.5, 4)])
def test_a_fraction_of_the_samples_is_rounded_to_the_nearest_number_but_one_at_least(share, kept):
    samples = StepProblem(0).query
    count = samples.weights.shape[1]
    thinned = _thin(samples, share / count, np.random.default_rng(0))
    assert thinned.weights.shape[1] == kept


@pytest.mark.parametrize("weights", [{1: 1 / 3, 2: 1 / 3, 3: 1 / 3}, {1: 0.1, 3: 0.9}], ids=["alike", "uneven"])
@pytest.mark.parametrize("chunk", [1, NUM_TASKS])
def test_the_multi_step_objective_is_the_weighted_mean_over_inner_steps(chunk, weights):
    """Of objectives that each end with one of the steps."""
    problem = StepProblem(3)
    data = [*problem.supports, problem.query]
    whole = replace(problem.make(chunk), queries={step: data[step] for step in weights}, weights=weights)
    parts = {step: problem.make(supports=data[:step], query=data[step]) for step in weights}
    elsewhere = problem.vector + 0.05 * torch.randn_like(problem.vector)
    v = torch.randn_like(problem.vector)

    def measured(objective):
        product = objective.kl_products(problem.vector, 1.0, np.random.default_rng(0))
        return [*objective.evaluate(elsewhere), *objective.loss_and_gradient(elsewhere), product(v)]

    weighted = [[weight * value for value in measured(parts[step])] for step, weight in weights.items()]
    means, last = [sum(of) for of in zip(*weighted, strict=True)], measured(parts[3])
    for found, expected, other in zip(measured(whole), means, last, strict=True):
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, other, rtol=1e-3)


def test_where_the_episodes_were_sampled_ratios_are_one_and_kl_is_zero():
    problem = StepProblem()
    loss, kl = problem.objective.evaluate(problem.vector)
    expected = -(problem.query.weights * problem.query.advantages).sum(dim=1).mean()
    torch.testing.assert_close(loss, expected)
    assert kl.item() == pytest.approx(0, abs=1e-14)


def test_there_the_surrogate_has_the_policy_gradient():
    problem = StepProblem(steps=0)
    _, gradient = problem.objective.loss_and_gradient(problem.vector)
    theta = {n: v.clone().requires_grad_() for n, v in problem.theta.items()}
    total = 0.0
    for task in range(NUM_TASKS):
        output = functional_call(problem.policy, theta, (problem.query.observations[task],))
        log_probs = PLANE.log_prob(output, problem.query.actions[task])
        total = total - (problem.query.weights[task] * problem.query.advantages[task] * log_probs).sum() / NUM_TASKS
    torch.testing.assert_close(gradient, ravel(torch.autograd.grad(total, list(theta.values()))))


def test_the_kl_is_that_of_the_old_policy_against_the_new():
    problem = StepProblem()
    elsewhere = problem.vector + 0.2
    _, kl = problem.objective.evaluate(elsewhere)
    output = torch.stack(
        [
            functional_call(
                problem.policy,
                problem.slow_task_step(
                    unravel(elsewhere.clone().requires_grad_(), problem.theta), problem.supports[0], m, False
                ),
                (problem.query.observations[m],),
            )
            for m in range(NUM_TASKS)
        ]
    )
    old_new = (problem.query.weights * PLANE.kl(problem.query.dist_params, output)).sum(1).mean()
    new_old = (problem.query.weights * PLANE.kl(output, problem.query.dist_params)).sum(1).mean()
    torch.testing.assert_close(kl, old_new)
    assert abs(old_new - new_old) > 1e-3 * old_new


def test_the_meta_gradient_depends_on_the_query_data():
    one, other = StepProblem(), StepProblem()
    changed = other.make(
        query=random_samples(
            other.policy, PLANE, tiny_theta(other.policy, NUM_TASKS)[1], NUM_TASKS, 10, torch.Generator().manual_seed(9)
        )
    )
    gradients = [objective.loss_and_gradient(one.vector)[1] for objective in (one.objective, changed)]
    assert not torch.allclose(*gradients, rtol=1e-2)


def test_the_meta_gradient_depends_on_the_support_data_only_through_a_step():
    for step_size, same in ((0.3, False), (1e-300, True)):
        problem = StepProblem(step_size=step_size)
        support = random_samples(
            problem.policy,
            PLANE,
            tiny_theta(problem.policy, NUM_TASKS)[1],
            NUM_TASKS,
            12,
            torch.Generator().manual_seed(9),
        )
        gradients = [
            objective.loss_and_gradient(problem.vector)[1]
            for objective in (problem.objective, problem.make(supports=[support]))
        ]
        assert torch.allclose(*gradients, rtol=1e-9) == same


def test_first_and_second_order_gradients_differ_and_the_first_is_exact():
    second, first = StepProblem(), StepProblem(second_order=False)
    gradient = first.objective.loss_and_gradient(first.vector)[1]
    assert not torch.allclose(gradient, second.objective.loss_and_gradient(first.vector)[1], rtol=1e-2)
    phi = first.slow_step(tiny_theta(first.policy, NUM_TASKS)[1], first.supports[0])
    leaves = {n: v.clone().requires_grad_() for n, v in phi.items()}
    outputs = torch.stack(
        [
            functional_call(first.policy, {n: v[m] for n, v in leaves.items()}, (first.query.observations[m],))
            for m in range(NUM_TASKS)
        ]
    )
    loss = surrogate(PLANE, outputs, first.query).mean()
    expected = ravel([g.sum(dim=0) for g in torch.autograd.grad(loss, list(leaves.values()))])
    torch.testing.assert_close(gradient, expected)


def test_threads_change_nothing(restored_threads):
    """Chunks run side by side; policies with tensors of their own would mix up tasks if they shared a module."""
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        problem = StepProblem(2, chunk=1)
        loss, gradient = problem.objective.loss_and_gradient(problem.vector)
        product = problem.objective.kl_products(problem.vector, 0.5, np.random.default_rng(0))(gradient)
        evaluated = map(torch.atleast_1d, problem.objective.evaluate(problem.vector + 0.1))
        results.append(torch.cat([loss.view(1), gradient, product, *evaluated]))
        assert torch.get_num_threads() == count
    assert torch.equal(results[0], results[1])
    # three chunks instead of two: another order of sums, which rounding to float32 would hide
    torch.testing.assert_close(results[0], results[2], rtol=1e-13, atol=1e-13)


def test_a_loss_that_is_not_finite_names_the_task():
    problem = StepProblem()
    problem.query.advantages[1, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="task 1"):
        problem.objective.loss_and_gradient(problem.vector)
