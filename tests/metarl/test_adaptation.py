"""The inner loop on losses simple enough to know the answer."""

import pytest
import torch

from metarl.adaptation import GradientDescent, adapt, adapt_step, inner_gradient
from metarl.parameters import ravel, unravel
from tests.probes import finite_differences

CURVATURE = torch.tensor([[1.0, 3.0], [2.0, 5.0]], dtype=torch.float64)  # (M, n)
TARGETS = torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
THETA = {"x": torch.tensor([0.3, 0.7], dtype=torch.float64)}


def quadratic(phi, targets):
    """sum_i c_i (x_i - target_i)^2 / 2 for each task."""
    return (0.5 * CURVATURE[: len(targets)] * (phi["x"] - targets).square()).sum(dim=1)


def quartic(phi, targets):
    return (phi["x"] - targets).pow(4).sum(dim=1)


def leaves(theta):
    return {name: value.clone().requires_grad_() for name, value in theta.items()}


def test_a_step_is_the_step_size_times_the_tasks_own_gradient():
    rule = GradientDescent(0.1)
    phi, norm = adapt_step(quadratic, rule, THETA, rule.start(THETA, 2), TARGETS, 0)
    gradient = CURVATURE * (THETA["x"] - TARGETS)
    torch.testing.assert_close(phi["x"], THETA["x"] - 0.1 * gradient)
    torch.testing.assert_close(norm, gradient.norm(dim=1))
    torch.testing.assert_close((phi["x"] - THETA["x"]).norm(dim=1), 0.1 * norm)


def test_step_sizes_at_test_time_are_alpha_then_half_of_it():
    rule = GradientDescent(0.2, steps=1)
    gradients, zero = {"x": torch.ones(2, 2)}, {"x": torch.zeros(2, 2)}
    sizes = [-rule.update(THETA, zero, gradients, step)["x"][0, 0].item() for step in range(3)]
    assert sizes == pytest.approx([0.2, 0.1, 0.1])
    trained = GradientDescent(0.2, steps=2)
    assert -trained.update(THETA, zero, gradients, 1)["x"][0, 0].item() == pytest.approx(0.2)


def test_each_task_goes_on_from_its_own_parameters():
    rule = GradientDescent(0.1, steps=3)
    phi = adapt(quadratic, rule, leaves(THETA), [TARGETS] * 3, 2)["x"]
    expected = TARGETS + (1 - 0.1 * CURVATURE) ** 3 * (THETA["x"] - TARGETS)
    torch.testing.assert_close(phi, expected)


def test_stepping_without_a_graph_gives_the_same_parameters():
    rule = GradientDescent(0.05, steps=2)
    phi = rule.start(THETA, 2)
    for step in range(2):
        phi, _ = adapt_step(quartic, rule, THETA, phi, TARGETS, step)
    torch.testing.assert_close(adapt(quartic, rule, leaves(THETA), [TARGETS] * 2, 2)["x"], phi["x"])


def meta_gradient(rule, theta=THETA, supports=(TARGETS, TARGETS)):
    parameters = leaves(theta)
    phi = adapt(quartic, rule, parameters, list(supports), 2)
    return torch.autograd.grad(quartic(phi, TARGETS + 1).sum(), parameters["x"])[0]


def test_second_order_meta_gradient_is_the_derivative():
    rule = GradientDescent(0.01, steps=2)

    def objective(vector):
        phi = adapt(quartic, rule, leaves(unravel(vector, THETA)), [TARGETS] * 2, 2)
        return quartic(phi, TARGETS + 1).sum().detach()

    expected = finite_differences(objective, ravel(list(THETA.values())))
    torch.testing.assert_close(meta_gradient(rule), expected, rtol=1e-7, atol=1e-7)


def test_first_order_meta_gradient_is_the_gradient_at_the_adapted_parameters():
    rule = GradientDescent(0.01, steps=2, second_order=False)
    phi = adapt(quartic, rule, leaves(THETA), [TARGETS] * 2, 2)["x"].detach()
    expected = (4 * (phi - TARGETS - 1) ** 3).sum(dim=0)
    torch.testing.assert_close(meta_gradient(rule), expected)
    assert not torch.allclose(meta_gradient(rule), meta_gradient(GradientDescent(0.01, steps=2)), rtol=1e-2)


def test_anchors_give_the_values_and_leave_the_derivatives():
    rule = GradientDescent(0.1, steps=1)
    parameters = leaves(THETA)
    anchor = {"x": torch.tensor([[7.0, 8.0], [9.0, 10.0]], dtype=torch.float64)}
    phi = adapt(quadratic, rule, parameters, [TARGETS], 2, [anchor])["x"]
    assert torch.equal(phi, anchor["x"])
    jacobian = torch.autograd.grad(phi[1, 1], parameters["x"])[0]
    assert jacobian.tolist() == pytest.approx([0, 1 - 0.1 * 5])


def test_parameters_without_a_part_in_the_loss_stay():
    theta = {**THETA, "idle": torch.ones(3, dtype=torch.float64)}
    rule = GradientDescent(0.1)
    phi, _ = adapt_step(quadratic, rule, theta, rule.start(theta, 2), TARGETS, 0)
    assert (phi["idle"] == 1).all()


def test_inner_gradient_keeps_a_graph_only_on_request():
    phi = {"x": THETA["x"].expand(2, 2).clone().requires_grad_()}
    assert inner_gradient(quartic, phi, TARGETS, differentiable=True)["x"].requires_grad
    assert not inner_gradient(quartic, phi, TARGETS, differentiable=False)["x"].requires_grad
