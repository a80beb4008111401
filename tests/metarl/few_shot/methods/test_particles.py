"""EMAML and Bayesian MAML against loops over particles, MAP estimates and finite differences."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Gamma, Normal
from torch.func import functional_call

from metarl.core.parameters import expand_over_tasks, ravel, unravel
from metarl.few_shot.methods import particles
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.methods.particles import BMAML, EMAML, kernel_width, stein_direction
from tests.metarl.few_shot.further_methods import NOISY, RULE, make, members, numbers, rows, tasks_for
from tests.probes import finite_differences

LOGS = ("log_precision.noise", "log_precision.weights")


def slow_direction(points, gradients):
    """SVGD's update of particles (P, n), one pair after another, its kernel's gradient by autograd."""
    count = len(points)
    squared = torch.stack([torch.stack([(a - b).square().sum() for b in points]) for a in points])
    width = squared.flatten().quantile(0.5) / math.log(count)
    found = []
    for m in range(count):
        total = 0
        for j in range(count):
            x = points[j].clone().requires_grad_()
            kernel = (-(x - points[m]).square().sum() / width).exp()
            total = total + kernel.detach() * gradients[j] + torch.autograd.grad(kernel, x)[0]
        found.append(total / count)
    return torch.stack(found)


def test_the_stein_direction_is_that_of_a_loop_over_pairs():
    torch.manual_seed(0)
    points, gradients = torch.randn(2, 3, 5, 7, dtype=torch.float64).unbind()
    found = stein_direction(points, gradients)
    for task in range(3):
        torch.testing.assert_close(found[task], slow_direction(points[task], gradients[task]))
    away = stein_direction(points, torch.zeros_like(gradients))  # without data, particles leave each other
    before, after = (torch.cdist(x, x).sum() for x in (points, points + 0.1 * away))
    assert after > before


def test_one_particle_climbs_to_the_map_estimate():
    torch.manual_seed(0)
    particle, gradient = torch.randn(2, 2, 1, 4, dtype=torch.float64).unbind()
    assert torch.equal(stein_direction(particle, gradient), gradient)
    own = members(1)
    method = BMAML(own[0], NOISY, RULE, members=own)
    tasks, theta = tasks_for("bmaml", method, 1), method.meta_parameters()
    found = method.states(expand_over_tasks(theta, 1), tasks.support, 1)[1]
    point = {name: value[0].clone().requires_grad_() for name, value in theta.items()}
    gradients = torch.autograd.grad(log_posterior(method, point, tasks.support), list(point.values()))
    for (name, value), slope in zip(point.items(), gradients, strict=True):
        torch.testing.assert_close(found[name][0, 0], value.detach() + 0.1 * slope)


def log_posterior(method, particle, examples):
    """One particle's log posterior on one task, from torch's distributions, with the densities of log precisions."""
    noise, weights = (particle[name] for name in LOGS)
    values = {name: value for name, value in particle.items() if name not in LOGS}
    outputs = functional_call(method.module, values, (examples.inputs[0],))
    total = Normal(outputs, (-noise / 2).exp()).log_prob(examples.targets[0]).sum()
    total = total + sum(Normal(0, (-weights / 2).exp()).log_prob(value).sum() for value in values.values())
    for log, (shape, rate) in ((noise, method.noise_prior), (weights, method.weight_prior)):
        total = total + Gamma(shape, rate).log_prob(log.exp()) + log
    return total


def test_the_log_posterior_is_that_of_the_distributions_up_to_a_constant():
    method, theta = make("bmaml")
    tasks = tasks_for("bmaml", method)
    found = method.log_posterior(expand_over_tasks(theta, 3), tasks.support)
    expected = torch.stack(
        [
            torch.stack(
                [
                    log_posterior(method, {n: v[p] for n, v in theta.items()}, tasks.support.of_tasks(slice(t, t + 1)))
                    for p in range(3)
                ]
            )
            for t in range(3)
        ]
    )
    torch.testing.assert_close(found - found[0, 0], expected - expected[0, 0])


def test_particles_take_stein_steps_by_the_posterior_of_the_support():
    method, theta = make("bmaml")
    tasks = tasks_for("bmaml", method)
    found = method.states(expand_over_tasks(theta, 3), tasks.support, 1)[1]
    for task in range(3):
        own, slopes = [], []
        for p in range(3):
            point = {name: value[p].clone().requires_grad_() for name, value in theta.items()}
            value = log_posterior(method, point, tasks.support.of_tasks(slice(task, task + 1)))
            slopes.append(ravel(torch.autograd.grad(value, list(point.values()))))
            own.append(ravel(list(point.values())).detach())
        moved = torch.stack(own) + 0.1 * slow_direction(torch.stack(own), torch.stack(slopes))
        for p in range(3):
            torch.testing.assert_close(ravel([value[task, p] for value in found.values()]), moved[p])


def test_the_chaser_loss_has_a_constant_leader_and_counts_weights_alone(monkeypatch):
    method, theta = make("bmaml")
    tasks = tasks_for("bmaml", method)
    widths = []

    def noted(squared):
        widths.append(kernel_width(squared))
        return widths[-1]

    monkeypatch.setattr(particles, "kernel_width", noted)
    leader = method.states(expand_over_tasks(theta, 3), tasks.support, 2)[-1]
    joined = tasks.support.joined(tasks.query)
    leader = method.states(leader, joined, 1)[-1]

    def loss(values):
        follower = method.states(expand_over_tasks(values, 3), tasks.support, 2)[-1]
        return sum((follower[n] - leader[n]).square().sum() for n in leader if n not in LOGS)

    gradients, losses, _ = method.gradient(rows(theta, 3), tasks, numbers(method))
    torch.testing.assert_close(losses.sum(), loss(theta))
    order = itertools.cycle(widths[:2])  # of both follower steps: the kernel's width is a constant, too
    monkeypatch.setattr(particles, "kernel_width", lambda squared: next(order))
    point = ravel(list(theta.values()))
    slopes = finite_differences(lambda vector: loss(unravel(vector, theta)), point)
    found = ravel([value.sum(dim=0) for value in gradients.values()])
    torch.testing.assert_close(found, slopes, rtol=1e-5, atol=1e-7)


def test_emaml_is_as_many_mamls_and_predicts_their_mean():
    method, theta = make("emaml")
    tasks = tasks_for("emaml", method)
    gradients, losses, metrics = method.gradient(rows(theta, 3), tasks, numbers(method))
    single = MAML(method.module, NOISY, RULE)
    outputs, total = [], 0
    for p in range(3):
        own = {name: value[p] for name, value in theta.items()}
        found, loss, _ = single.gradient(rows(own, 3), tasks, {2: torch.tensor(1.0)})
        for name, value in found.items():
            torch.testing.assert_close(gradients[name][:, p], value)
        phi = single.states(expand_over_tasks(own, 3), tasks.support, 2)[-1]
        outputs.append(single.call(phi, tasks.query.inputs))
        total = total + loss
    torch.testing.assert_close(losses, total)
    mean = torch.stack(outputs).mean(dim=0).detach()
    torch.testing.assert_close(metrics, (mean - tasks.query.targets).square().mean(dim=(1, 2)))
    state = method.states(expand_over_tasks(theta, 3), tasks.support, 2)[-1]
    mixture = method.predictive(theta, state, tasks.query.inputs)
    torch.testing.assert_close(mixture.means, torch.stack(outputs, dim=1).detach())
    torch.testing.assert_close(mixture.variance, torch.full((3, 3), 0.09, dtype=torch.float64))


def test_each_particle_of_bayesian_maml_has_its_own_noise():
    method, theta = make("bmaml")
    tasks = tasks_for("bmaml", method)
    state = method.states(expand_over_tasks(theta, 3), tasks.support, 1)[-1]
    found = method.predictive(theta, state, tasks.query.inputs)
    torch.testing.assert_close(found.variance, torch.exp(-state[LOGS[0]]))
    assert len(found.variance.unique()) == 9


def test_members_start_from_their_own_parameters():
    method = replace(make("emaml")[0])
    theta = method.meta_parameters()
    for p, member in enumerate(method.members):
        for name, value in member.named_parameters():
            assert torch.equal(theta[name][p], value)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"members": nn.ModuleList()}, "members"), ({"members": members(), "noise_prior": (1.0,)}, "noise_prior")],
)
def test_what_cannot_be_particles_is_refused(options, match):
    kind = BMAML if "noise_prior" in options else EMAML
    with pytest.raises(ValueError, match=match):
        kind(members()[0], NOISY, RULE, **options)
