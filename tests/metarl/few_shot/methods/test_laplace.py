"""LLAMA's log-determinant and its samples against exact Hessians and covariances."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.functional import hessian
from torch.func import functional_call

from metarl.core.parameters import expand_over_tasks, ravel, unravel
from metarl.few_shot.criteria import REGRESSION
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.methods.laplace import Llama, log_determinant, posterior_deviations
from tests.metarl.few_shot.further_methods import NOISY, RULE, make, numbers, rows, smooth, tasks_for
from tests.probes import finite_differences

PRECISION, STD = 2.5, 0.3


def exact_hessian(method, phi, examples, task, targets):
    """The Hessian of -log p(data | w) - log p(w) of one task, (n, n), by autograd alone."""
    own = {name: value[task] for name, value in phi.items()}

    def energy(vector):
        outputs = functional_call(method.module, unravel(vector, own), (examples.inputs[task],))
        return (outputs - targets).square().sum() / (2 * STD**2) + PRECISION / 2 * vector.square().sum()

    return hessian(energy, ravel(list(own.values())))


def adapted():
    """A method, adapted parameters and tasks."""
    method, theta = make("llama")
    tasks = tasks_for("llama", method)
    return method, MAML.states(method, expand_over_tasks(theta, 3), tasks.support, 2)[-1], tasks


def test_the_log_determinant_is_that_of_the_exact_hessian_where_there_are_no_residuals():
    method, phi, tasks = adapted()
    jacobian = method.jacobian(phi, tasks.query.inputs)
    outputs = method.call(phi, tasks.query.inputs)
    found = log_determinant(jacobian, PRECISION, STD)
    for task in range(3):
        fitted = exact_hessian(method, phi, tasks.query, task, outputs[task])
        torch.testing.assert_close(found[task], torch.logdet(fitted))
        other = exact_hessian(method, phi, tasks.query, task, tasks.query.targets[task])
        assert not torch.allclose(other, fitted, rtol=1e-2)  # the Hessian proper has residuals, the Fisher matrix none
        fisher = jacobian[task].T @ jacobian[task] / STD**2 + PRECISION * torch.eye(len(fitted), dtype=torch.float64)
        torch.testing.assert_close(fitted, fisher)


def test_for_a_linear_module_it_is_the_hessian_whatever_the_residuals():
    module = torch.nn.Linear(1, 1).double()
    method = Llama(module, NOISY, RULE)
    tasks = tasks_for("llama", method)
    phi = expand_over_tasks(method.meta_parameters(), 3)
    found = log_determinant(method.jacobian(phi, tasks.query.inputs), PRECISION, STD)
    for task in range(3):
        expected = exact_hessian(method, phi, tasks.query, task, tasks.query.targets[task])
        torch.testing.assert_close(found[task], torch.logdet(expected))


@pytest.mark.parametrize("rows_of_data", [2, 9])
def test_samples_have_the_inverse_curvature_as_their_covariance(rows_of_data):
    torch.manual_seed(0)
    size = 5
    jacobian = torch.randn(2, rows_of_data, size, dtype=torch.float64)
    every = torch.eye(size + rows_of_data, dtype=torch.float64)  # a sample is linear in its noise
    factors = posterior_deviations(jacobian, PRECISION, STD, every)
    identity = torch.eye(size, dtype=torch.float64)
    expected = torch.linalg.inv(jacobian.mT @ jacobian / STD**2 + PRECISION * identity)
    torch.testing.assert_close(factors.mT @ factors, expected)


def test_the_prior_is_the_one_of_which_small_inner_steps_find_the_map_estimate():
    module = torch.nn.Linear(1, 1).double()
    method = Llama(module, NOISY, replace(RULE, step_size=1e-4))
    tasks = tasks_for("llama", method)
    theta = expand_over_tasks(method.meta_parameters(), 3)
    found = method.states(theta, tasks.support, 2)[-1]
    precision = method.prior_precision(tasks.support, 2)
    assert precision == pytest.approx(5 / (2 * 1e-4 * 2 * STD**2))
    for task in range(3):
        start = torch.tensor([theta["weight"][task, 0, 0], theta["bias"][task, 0]], dtype=torch.float64)
        x = tasks.support.inputs[task, :, 0]
        design = torch.stack([x, torch.ones_like(x)], dim=1)
        system = design.T @ design / STD**2 + precision * torch.eye(2, dtype=torch.float64)
        error = tasks.support.targets[task, :, 0] - design @ start
        estimate = start + torch.linalg.solve(system, design.T @ error / STD**2)
        moved = torch.stack([found["weight"][task, 0, 0], found["bias"][task, 0]])
        torch.testing.assert_close(moved - start, estimate - start, rtol=0.02, atol=0)


def test_the_predictive_mean_is_mamls_and_the_variance_that_of_the_linearised_posterior():
    method, theta = make("llama")
    method = replace(method, samples=4_000)
    tasks = tasks_for("llama", method, 1)
    own = expand_over_tasks(theta, 1)
    state = method.states(own, tasks.support, 2)[-1]
    maml = MAML(method.module, NOISY, RULE)
    expected = maml.predict(own, maml.states(own, tasks.support, 2)[-1], tasks.query.inputs)
    found = method.predictive(own, state, tasks.query.inputs)
    torch.testing.assert_close(method.predict(own, state, tasks.query.inputs), expected)
    torch.testing.assert_close(found.mean, expected)
    phi = {name: value for name, value in state.items() if name != "deviations"}
    support, query = (method.jacobian(phi, of.inputs)[0] for of in (tasks.support, tasks.query))
    curvature = support.T @ support / STD**2
    curvature += method.prior_precision(tasks.support, 2) * torch.eye(len(curvature), dtype=torch.float64)
    variance = STD**2 + (query @ torch.linalg.inv(curvature) * query).sum(dim=1)
    torch.testing.assert_close(found.std[0, :, 0].square(), variance, rtol=0.05, atol=0)


def test_its_gradient_is_the_derivative_and_without_a_weight_mamls():
    method, theta = make("llama")
    tasks = tasks_for("llama", method)
    gradients = method.gradient(rows(theta, 3), tasks, numbers(method))[0]
    found = ravel([value.sum(dim=0) for value in gradients.values()])

    def loss(vector):
        return method.loss(rows(unravel(vector, theta), 3), tasks, {})[0].sum().detach()

    slopes = finite_differences(loss, ravel(list(theta.values())))
    torch.testing.assert_close(found, slopes, rtol=1e-5, atol=1e-6)
    plain, expected = (
        of.gradient(rows(theta, 3), tasks, {2: torch.tensor(1.0)})[0]
        for of in (replace(method, determinant_weight=0.0), MAML(method.module, NOISY, RULE))
    )
    torch.testing.assert_close(plain, expected)
    assert not torch.allclose(found, ravel([value.sum(dim=0) for value in plain.values()]), rtol=1e-3)


def test_it_wants_to_know_the_noise_and_an_even_number_of_samples():
    with pytest.raises(ValueError, match="criterion"):
        Llama(smooth(), REGRESSION, RULE)
    with pytest.raises(ValueError, match="samples"):
        Llama(smooth(), NOISY, RULE, samples=3)
