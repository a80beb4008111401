"""The meta-objective in float64: gradients and products against finite differences and slow, obvious oracles."""

import gymnasium
import numpy as np
import pytest
import torch
from torch.func import functional_call

from metarl.core.adaptation import GradientDescent
from metarl.core.errors import NonFiniteError
from metarl.core.parameters import ravel, unravel
from metarl.rl.action_distributions import DiagonalGaussian
from metarl.rl.estimators import score, surrogate
from metarl.rl.objective import MetaObjective
from tests.probes import TinyGaussian, finite_differences, random_samples, tiny_theta

TASKS = 3
FAMILY = DiagonalGaussian(gymnasium.spaces.Box(-1, 1, (2,)))


class Problem:
    """Support and query samples that were drawn with theta and with the parameters adapted on the support."""

    def __init__(self, steps=1, step_size=0.3, second_order=True, chunk=TASKS, seed=0):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self.policy = TinyGaussian()
        self.theta, phi = tiny_theta(self.policy, TASKS)
        self.rule = GradientDescent(step_size, steps, second_order)
        self.supports = []
        for _ in range(steps):
            self.supports.append(random_samples(self.policy, FAMILY, phi, TASKS, 12, generator))
            phi = self.slow_step(phi, self.supports[-1])
        self.query = random_samples(self.policy, FAMILY, phi, TASKS, 10, generator)
        self.vector = ravel(list(self.theta.values()))
        self.objective = self.make(chunk)

    def make(self, chunk=TASKS, supports=None, query=None, earlier=()):
        supports, query = self.supports if supports is None else supports, query or self.query
        return MetaObjective(self.policy, FAMILY, score, self.rule, self.theta, supports, query, chunk, earlier=earlier)

    def slow_step(self, phi, samples):
        """One task at a time."""
        rows = [self.slow_task_step({n: v[m] for n, v in phi.items()}, samples, m, False) for m in range(TASKS)]
        return {name: torch.stack([row[name] for row in rows]).detach() for name in phi}

    def slow_task_step(self, own, samples, task, differentiable):
        own = {n: v if v.requires_grad else v.clone().requires_grad_() for n, v in own.items()}
        output = functional_call(self.policy, own, (samples.observations[task],))
        log_probs = FAMILY.log_prob(output, samples.actions[task])
        loss = -(samples.weights[task] * samples.advantages[task] * log_probs).sum()
        gradients = torch.autograd.grad(loss, list(own.values()), create_graph=differentiable)
        return {n: v - self.rule.step_size * g for (n, v), g in zip(own.items(), gradients, strict=True)}

    def slow_loss_and_kl(self, vector):
        """The definition of L and KL, one task at a time, differentiable in the vector."""
        loss, kl = 0.0, 0.0
        for task in range(TASKS):
            own = unravel(vector, self.theta)
            for samples in self.supports:
                own = self.slow_task_step(own, samples, task, True)
            output = functional_call(self.policy, own, (self.query.observations[task],))
            ratios = (FAMILY.log_prob(output, self.query.actions[task]) - self.query.log_probs[task]).exp()
            loss = loss - (self.query.weights[task] * self.query.advantages[task] * ratios).sum()
            divergence = FAMILY.kl(self.query.distribution[task], output)
            kl = kl + (self.query.weights[task] * divergence).sum()
        return loss / TASKS, kl / TASKS


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_loss_and_kl_equal_one_task_at_a_time(steps):
    problem = Problem(steps)
    elsewhere = problem.vector + 0.1 * torch.randn_like(problem.vector)
    loss, kl = problem.slow_loss_and_kl(elsewhere.requires_grad_())
    found_loss, found_kl = problem.objective.evaluate(elsewhere.detach())
    torch.testing.assert_close(found_loss, loss)
    torch.testing.assert_close(found_kl, kl)
    torch.testing.assert_close(problem.objective.loss_and_gradient(elsewhere.detach())[0], loss)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_gradient_is_the_derivative_of_the_loss(steps):
    problem = Problem(steps)
    elsewhere = problem.vector + 0.05 * torch.randn_like(problem.vector)
    _, gradient = problem.objective.loss_and_gradient(elsewhere)
    expected = finite_differences(lambda v: problem.objective.evaluate(v)[0], elsewhere)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_products_are_those_of_the_hessian_of_kl(steps):
    problem = Problem(steps)
    hessian = torch.autograd.functional.hessian(lambda v: problem.slow_loss_and_kl(v)[1], problem.vector)
    product = problem.objective.kl_products(problem.vector, 1.0, np.random.default_rng(0))
    found = torch.stack([product(v) for v in torch.eye(len(problem.vector), dtype=torch.float64)])
    torch.testing.assert_close(found, hessian, rtol=1e-8, atol=1e-9)


def test_products_agree_with_finite_differences_of_kl():
    problem = Problem()

    def gradient(vector):
        leaf = vector.clone().requires_grad_()
        return torch.autograd.grad(problem.slow_loss_and_kl(leaf)[1], leaf)[0]

    product = problem.objective.kl_products(problem.vector, 1.0, np.random.default_rng(0))
    v = torch.randn_like(problem.vector)
    expected = (gradient(problem.vector + 1e-6 * v) - gradient(problem.vector - 1e-6 * v)) / 2e-6
    torch.testing.assert_close(product(v), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_change_nothing(chunk):
    whole, parts = Problem(2), Problem(2, chunk=chunk)
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


@pytest.mark.parametrize("chunk", [1, TASKS])
def test_the_multi_step_objective_is_the_mean_over_inner_steps(chunk):
    """Of objectives that each end with one of the steps."""
    problem = Problem(3)
    data = [*problem.supports, problem.query]
    whole = problem.make(chunk, earlier=data[1:-1])
    parts = [problem.make(supports=data[:step], query=data[step]) for step in (1, 2, 3)]
    elsewhere = problem.vector + 0.05 * torch.randn_like(problem.vector)
    v = torch.randn_like(problem.vector)

    def figures(objective):
        product = objective.kl_products(problem.vector, 1.0, np.random.default_rng(0))
        return [*objective.evaluate(elsewhere), *objective.loss_and_gradient(elsewhere), product(v)]

    means = [sum(of) / 3 for of in zip(*map(figures, parts), strict=True)]
    last = figures(parts[-1])
    for found, expected, other in zip(figures(whole), means, last, strict=True):
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, other, rtol=1e-3)


def test_where_the_episodes_were_sampled_ratios_are_one_and_kl_is_zero():
    problem = Problem()
    loss, kl = problem.objective.evaluate(problem.vector)
    expected = -(problem.query.weights * problem.query.advantages).sum(dim=1).mean()
    torch.testing.assert_close(loss, expected)
    assert kl.item() == pytest.approx(0, abs=1e-14)


def test_there_the_surrogate_has_the_policy_gradient():
    problem = Problem(steps=0)
    _, gradient = problem.objective.loss_and_gradient(problem.vector)
    theta = {n: v.clone().requires_grad_() for n, v in problem.theta.items()}
    total = 0.0
    for task in range(TASKS):
        output = functional_call(problem.policy, theta, (problem.query.observations[task],))
        log_probs = FAMILY.log_prob(output, problem.query.actions[task])
        total = total - (problem.query.weights[task] * problem.query.advantages[task] * log_probs).sum() / TASKS
    torch.testing.assert_close(gradient, ravel(torch.autograd.grad(total, list(theta.values()))))


def test_the_kl_is_that_of_the_old_policy_against_the_new():
    problem = Problem()
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
            for m in range(TASKS)
        ]
    )
    old_new = (problem.query.weights * FAMILY.kl(problem.query.distribution, output)).sum(1).mean()
    new_old = (problem.query.weights * FAMILY.kl(output, problem.query.distribution)).sum(1).mean()
    torch.testing.assert_close(kl, old_new)
    assert abs(old_new - new_old) > 1e-3 * old_new


def test_the_meta_gradient_depends_on_the_query_data():
    one, other = Problem(), Problem()
    changed = other.make(
        query=random_samples(
            other.policy, FAMILY, tiny_theta(other.policy, TASKS)[1], TASKS, 10, torch.Generator().manual_seed(9)
        )
    )
    gradients = [objective.loss_and_gradient(one.vector)[1] for objective in (one.objective, changed)]
    assert not torch.allclose(*gradients, rtol=1e-2)


def test_the_meta_gradient_depends_on_the_support_data_only_through_a_step():
    for step_size, same in ((0.3, False), (1e-300, True)):
        problem = Problem(step_size=step_size)
        support = random_samples(
            problem.policy, FAMILY, tiny_theta(problem.policy, TASKS)[1], TASKS, 12, torch.Generator().manual_seed(9)
        )
        gradients = [
            objective.loss_and_gradient(problem.vector)[1]
            for objective in (problem.objective, problem.make(supports=[support]))
        ]
        assert torch.allclose(*gradients, rtol=1e-9) == same


def test_first_and_second_order_gradients_differ_and_the_first_is_exact():
    second, first = Problem(), Problem(second_order=False)
    gradient = first.objective.loss_and_gradient(first.vector)[1]
    assert not torch.allclose(gradient, second.objective.loss_and_gradient(first.vector)[1], rtol=1e-2)
    phi = first.slow_step(tiny_theta(first.policy, TASKS)[1], first.supports[0])
    leaves = {n: v.clone().requires_grad_() for n, v in phi.items()}
    outputs = torch.stack(
        [
            functional_call(first.policy, {n: v[m] for n, v in leaves.items()}, (first.query.observations[m],))
            for m in range(TASKS)
        ]
    )
    loss = surrogate(FAMILY, outputs, first.query).mean()
    expected = ravel([g.sum(dim=0) for g in torch.autograd.grad(loss, list(leaves.values()))])
    torch.testing.assert_close(gradient, expected)


def test_subsampled_products_keep_the_adapted_parameters_and_estimate_the_hessian():
    problem = Problem(step_size=0.05)
    rng = np.random.default_rng(0)
    v = torch.randn_like(problem.vector)
    exact = problem.objective.kl_products(problem.vector, 1.0, rng)(v)
    estimates = torch.stack([problem.objective.kl_products(problem.vector, 0.5, rng)(v) for _ in range(400)])
    error = estimates.std(dim=0) / 20
    assert estimates.std(dim=0).max() > 1e-3
    # weights are renormalised, and J enters twice: a small bias remains, far below the noise of one estimate
    assert ((estimates.mean(dim=0) - exact).abs() < 5 * error + 0.1 * exact.abs().max()).all()
    assert (estimates @ v > 0).all()


def test_subsampled_products_take_curvature_where_all_samples_lead():
    problem = Problem(step_size=0.5)
    seen = {}

    class Recorder(type(problem.objective)):
        def _path(self, theta, supports, tasks, anchors=None):
            path = super()._path(theta, supports, tasks, anchors)
            seen[tasks.start] = {n: v.detach() for n, v in path[-1].items()}
            return path

    problem.objective.__class__ = Recorder
    problem.objective.kl_products(problem.vector, 0.3, np.random.default_rng(0))
    expected = problem.slow_step(tiny_theta(problem.policy, TASKS)[1], problem.supports[0])
    for name, value in expected.items():
        torch.testing.assert_close(torch.cat([seen[start][name] for start in sorted(seen)]), value)


@pytest.mark.parametrize("steps", [1, 2])
def test_adapted_parameters_that_are_known_are_taken(steps):
    problem = Problem(steps)
    v = torch.randn_like(problem.vector)
    known = problem.objective._adapted_after_each_step(problem.theta, slice(0, TASKS))[1:]
    elsewhere = [{name: value + 0.1 for name, value in phi.items()} for phi in known]
    for fraction in (1.0, 0.5):
        products = []
        for adapted in (None, known, elsewhere):
            problem.objective.adapted = adapted
            product = problem.objective.kl_products(problem.vector, fraction, np.random.default_rng(0))
            products.append(product(v))
        assert torch.equal(products[0], products[1])
        assert not torch.allclose(products[0], products[2], rtol=1e-3)


def test_threads_change_nothing():
    """Chunks run side by side; policies with tensors of their own would mix up tasks if they shared a module."""
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            problem = Problem(2, chunk=1)
            loss, gradient = problem.objective.loss_and_gradient(problem.vector)
            product = problem.objective.kl_products(problem.vector, 0.5, np.random.default_rng(0))(gradient)
            results.append(
                torch.cat(
                    [
                        loss.view(1),
                        gradient,
                        product,
                        *map(torch.atleast_1d, problem.objective.evaluate(problem.vector + 0.1)),
                    ]
                )
            )
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    # three chunks instead of two: another order of sums, which rounding to float32 would hide
    torch.testing.assert_close(results[0], results[2], rtol=1e-13, atol=1e-13)


def test_a_loss_that_is_not_finite_names_the_task():
    problem = Problem()
    problem.query.advantages[1, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="task 1"):
        problem.objective.loss_and_gradient(problem.vector)


def test_first_order_products_are_those_of_the_adapted_policy_alone():
    """As if the adapted parameters moved with theta: J = 1."""
    problem = Problem(second_order=False)
    rows = {name: value.expand(TASKS, *value.shape) for name, value in problem.theta.items()}
    phi = problem.slow_step(rows, problem.supports[0])

    def kl(shift):
        total = torch.zeros((), dtype=torch.float64)
        for task in range(TASKS):
            own = {name: phi[name][task] + change for name, change in unravel(shift, problem.theta).items()}
            output = functional_call(problem.policy, own, (problem.query.observations[task],))
            divergence = FAMILY.kl(problem.query.distribution[task], output)
            total = total + (problem.query.weights[task] * divergence).sum() / TASKS
        return total

    hessian = torch.autograd.functional.hessian(kl, torch.zeros_like(problem.vector))
    product = problem.objective.kl_products(problem.vector, 1.0, np.random.default_rng(0))
    found = torch.stack([product(v) for v in torch.eye(len(problem.vector), dtype=torch.float64)])
    torch.testing.assert_close(found, hessian, rtol=1e-8, atol=1e-9)
