"""PLATIPUS against closed forms, by hand and against finite differences."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call

from metarl.core.parameters import expand_over_tasks, ravel, unravel
from metarl.few_shot.methods.noise import fixed_noise
from metarl.few_shot.methods.platipus import Platipus, gaussian_divergence
from tests.metarl.few_shot.further_methods import NOISY, RULE, make, numbers, rows, smooth, tasks_for
from tests.probes import finite_differences

NAMES = ("hidden.weight", "hidden.bias", "head.weight", "head.bias")


def slopes(method, values, x, y):
    """The gradient of one task's mean squared error, and the error."""
    point = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    error = (functional_call(method.module, point, (x,)) - y).square().mean()
    return dict(zip(point, torch.autograd.grad(error, list(point.values())), strict=True)), error.detach()


def descend(method, values, x, y, size):
    gradients, _ = slopes(method, values, x, y)
    return {name: value - size * gradients[name] for name, value in values.items()}


def test_the_divergence_is_torchs():
    torch.manual_seed(0)
    means, logs = torch.randn(2, 2, 3, 4, dtype=torch.float64).unbind()
    found = gaussian_divergence(means[0], logs[0], means[1], logs[1])
    expected = kl_divergence(Normal(means[0], logs[0].exp()), Normal(means[1], logs[1].exp())).sum(dim=1)
    torch.testing.assert_close(found, expected)
    assert (gaussian_divergence(means[0], logs[0], means[0], logs[0]) == 0).all()


def test_the_bound_is_the_loss_of_one_draw_and_the_divergence_by_hand():
    method, theta = make("platipus")
    tasks = tasks_for("platipus", method)
    found, _ = method.loss(rows(theta, 3), tasks, {})
    mean = {name: theta[name] for name in NAMES}
    for task in range(3):
        x, y = tasks.support.inputs[task], tasks.support.targets[task]
        x_query, y_query = tasks.query.inputs[task], tasks.query.targets[task]
        posterior = descend(method, mean, x_query, y_query, theta["step_size.posterior"])
        prior = descend(method, mean, x, y, theta["step_size.prior"])
        noise = unravel(tasks.support.noise[task], mean)
        phi = {n: v + theta[f"log_std.posterior.{n}"].exp() * noise[n] for n, v in posterior.items()}
        for _ in range(2):
            phi = descend(method, phi, x, y, 0.1)
        _, loss = slopes(method, phi, x_query, y_query)
        divergence = sum(
            kl_divergence(
                Normal(posterior[n], theta[f"log_std.posterior.{n}"].exp()),
                Normal(prior[n], theta[f"log_std.prior.{n}"].exp()),
            ).sum()
            for n in NAMES
        )
        torch.testing.assert_close(found[task].detach(), loss + 0.1 * divergence)


def test_its_gradient_is_the_derivative_of_the_bound():
    method, theta = make("platipus")
    tasks = tasks_for("platipus", method)
    gradients = method.gradient(rows(theta, 3), tasks, numbers(method))[0]
    point = ravel(list(theta.values()))

    def bound(vector):
        return method.loss(rows(unravel(vector, theta), 3), tasks, {})[0].sum().detach()

    found = ravel([value.sum(dim=0) for value in gradients.values()])
    torch.testing.assert_close(found, finite_differences(bound, point), rtol=1e-5, atol=1e-6)


def test_predictions_come_from_the_prior_given_the_support_alone():
    method, theta = make("platipus")
    tasks = tasks_for("platipus", method)
    states = method.states(expand_over_tasks(theta, 3), tasks.support, 2)
    mean = {name: theta[name] for name in NAMES}
    noise = fixed_noise(tasks.support.inputs, 4, sum(value.numel() for value in mean.values()))
    mixture = method.predictive(theta, states[-1], tasks.query.inputs)
    for task in range(3):
        x, y = tasks.support.inputs[task], tasks.support.targets[task]
        prior = descend(method, mean, x, y, theta["step_size.prior"])
        for sample in range(4):
            drawn = unravel(noise[sample], mean)
            phi = {n: v + theta[f"log_std.prior.{n}"].exp() * drawn[n] for n, v in prior.items()}
            torch.testing.assert_close(states[0]["head.bias"][task, sample], phi["head.bias"])
            for _ in range(2):
                phi = descend(method, phi, x, y, 0.1)
            outputs = functional_call(method.module, phi, (tasks.query.inputs[task],))
            torch.testing.assert_close(mixture.means[task, sample], outputs)
    torch.testing.assert_close(method.predict(theta, states[-1], tasks.query.inputs), mixture.mean)


def test_without_spread_and_prior_steps_it_is_maml():
    method = Platipus(smooth(), NOISY, RULE, samples=2, initial_std=1e-12, prior_step_size=0.0)
    tasks = tasks_for("platipus", method)
    own = expand_over_tasks(method.meta_parameters(), 3)
    state = method.states(own, tasks.support, 2)[-1]
    for task in range(3):
        phi = {name: own[name][task] for name in NAMES}
        for _ in range(2):
            phi = descend(method, phi, tasks.support.inputs[task], tasks.support.targets[task], 0.1)
        for name in NAMES:
            torch.testing.assert_close(state[name][task, 1], phi[name], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("setting", ["samples", "initial_std"])
def test_settings_out_of_bounds_are_refused(setting):
    with pytest.raises(ValueError, match=setting):
        Platipus(smooth(), NOISY, RULE, **{setting: 0})
