"""Meta-gradients against one differentiation through the whole graph, and the weights of the multi-step loss."""

import pytest
import torch

from metarl.core.adaptation import adaptation_path
from metarl.core.meta_gradient import pull_back, query_weights, reptile_gradient
from metarl.core.parameters import expand_over_tasks
from metarl.core.rules import GradientDescent, LayerStepSizes, MetaSGD
from tests.losses import TARGETS, THETA, coupled

THETA_2 = {**THETA, "y": torch.tensor([0.4], dtype=torch.float64)}
SUPPORTS = [TARGETS, TARGETS - 0.5, TARGETS + 0.5]
RULES = {
    "gradient descent": GradientDescent(0.03, 3),
    "first order": GradientDescent(0.03, 3, second_order=False),
    "meta-sgd": MetaSGD(0.03, 3),
    "layer step sizes": LayerStepSizes(0.03, 3),
    "part": GradientDescent(0.03, 3, adapted=("y",)),
    "context": GradientDescent(0.03, 3, adapted=("y",), from_zero=True),
}


def path_of(rule):
    theta = expand_over_tasks(rule.meta_parameters(THETA_2), 2)
    theta = {name: value.clone().requires_grad_() for name, value in theta.items()}
    return theta, adaptation_path(coupled, rule, theta, SUPPORTS)


def cotangents_of(path, weights):
    """w_s dL / dphi_s at values of phi_s without a graph."""
    found = {}
    for step, weight in weights.items():
        point = {name: value.detach().requires_grad_() for name, value in path[step].items()}
        loss = weight * coupled(point, TARGETS + 1).sum()
        found[step] = dict(zip(point, torch.autograd.grad(loss, list(point.values())), strict=True))
    return found


@pytest.mark.parametrize("weights", [{3: 1.0}, {1: 0.3, 2: 0.2, 3: 0.5}, {0: 1.0}], ids=["last", "all", "first"])
@pytest.mark.parametrize("kind", RULES)
def test_pulling_back_equals_one_pass_through_the_whole_graph(kind, weights):
    theta, path = path_of(RULES[kind])
    whole = sum(weight * coupled(path[step], TARGETS + 1).sum() for step, weight in weights.items())
    expected = torch.autograd.grad(
        whole, list(theta.values()), retain_graph=True, materialize_grads=True, allow_unused=True
    )
    found = pull_back(path, theta, cotangents_of(path, weights))
    assert list(found) == list(theta)
    for gradient, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-12)


def test_each_task_has_its_own_gradient():
    theta, path = path_of(RULES["gradient descent"])
    cotangents = cotangents_of(path, {3: 1.0})
    alone = {3: {name: value * torch.tensor([[1.0], [0.0]]) for name, value in cotangents[3].items()}}
    found = pull_back(path, theta, alone)
    assert (found["x"][1] == 0).all()
    assert (found["x"][0] != 0).all()


def test_a_path_that_does_not_depend_on_theta_has_no_gradient():
    theta, _ = path_of(RULES["gradient descent"])
    fixed = [{name: value.detach() for name, value in theta.items()}]
    found = pull_back(fixed, theta, {0: fixed[0]})
    assert all((found[name] == 0).all() and found[name].shape == value.shape for name, value in theta.items())


@pytest.mark.parametrize(
    ("inner_steps", "multi_step", "expected"),
    [
        (0, 0.0, {0: 1.0}),
        (1, 1.0, {1: 1.0}),
        (3, 0.0, {3: 1.0}),
        (4, 1.0, {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}),
        (2, 0.5, {1: 0.25, 2: 0.75}),
        (3, 0.001, {1: 0.01, 2: 0.01, 3: 0.98}),  # not below 0.03 / S
    ],
)
def test_query_weights_by_hand(inner_steps, multi_step, expected):
    found = query_weights(inner_steps, multi_step)
    assert found == pytest.approx(expected)
    assert sum(found.values()) == pytest.approx(1)


def test_reptile_leads_to_the_mean_of_the_adapted_parameters():
    theta = expand_over_tasks({**THETA_2, "step_size.x": torch.ones(2).double()}, 2)
    phi = {"x": torch.tensor([[1.0, 2.0], [3.0, 6.0]]).double(), "y": torch.tensor([[0.0], [1.0]]).double()}
    found = reptile_gradient(theta, phi)
    moved = {name: value[0] - found[name].mean(dim=0) for name, value in theta.items()}
    torch.testing.assert_close(moved["x"], torch.tensor([2.0, 4.0]).double())
    torch.testing.assert_close(moved["y"], torch.tensor([0.5]).double())
    assert (found["step_size.x"] == 0).all()
