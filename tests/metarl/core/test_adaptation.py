"""The inner loop on losses simple enough to know the answer."""

import pytest
import torch

from metarl.core.adaptation import adapt_step, inner_gradient, linearised_gradient
from metarl.core.jacobian import Jacobian
from metarl.core.parameters import expand_over_tasks, ravel, unravel
from metarl.core.rules import GradientDescent
from tests.losses import CURVATURE, ROWS, TARGETS, THETA, adapt, leaves, quadratic, quartic
from tests.probes import finite_differences


def test_a_step_is_the_step_size_times_the_tasks_own_gradient():
    rule = GradientDescent(0.1)
    phi, norm = adapt_step(quadratic, rule, ROWS, rule.start(ROWS), TARGETS, 0)
    gradient = CURVATURE * (THETA["x"] - TARGETS)
    torch.testing.assert_close(phi["x"], THETA["x"] - 0.1 * gradient)
    torch.testing.assert_close(norm, gradient.norm(dim=1))
    torch.testing.assert_close((phi["x"] - THETA["x"]).norm(dim=1), 0.1 * norm)


def test_each_task_goes_on_from_its_own_parameters():
    rule = GradientDescent(0.1, inner_steps=3)
    phi = adapt(quadratic, rule, leaves(THETA), [TARGETS] * 3, 2)["x"]
    expected = TARGETS + (1 - 0.1 * CURVATURE) ** 3 * (THETA["x"] - TARGETS)
    torch.testing.assert_close(phi, expected)


def test_stepping_without_a_graph_gives_the_same_parameters():
    rule = GradientDescent(0.05, inner_steps=2)
    phi = rule.start(ROWS)
    for step in range(2):
        phi, _ = adapt_step(quartic, rule, ROWS, phi, TARGETS, step)
    torch.testing.assert_close(adapt(quartic, rule, leaves(THETA), [TARGETS] * 2, 2)["x"], phi["x"])


def meta_gradient(rule, theta=THETA, supports=(TARGETS, TARGETS)):
    parameters = leaves(theta)
    phi = adapt(quartic, rule, parameters, list(supports), 2)
    return torch.autograd.grad(quartic(phi, TARGETS + 1).sum(), parameters["x"])[0]


def test_second_order_meta_gradient_is_the_derivative():
    rule = GradientDescent(0.01, inner_steps=2)

    def objective(vector):
        phi = adapt(quartic, rule, leaves(unravel(vector, THETA)), [TARGETS] * 2, 2)
        return quartic(phi, TARGETS + 1).sum().detach()

    expected = finite_differences(objective, ravel(list(THETA.values())))
    torch.testing.assert_close(meta_gradient(rule), expected, rtol=1e-7, atol=1e-7)


def test_first_order_meta_gradient_is_the_gradient_at_the_adapted_parameters():
    rule = GradientDescent(0.01, inner_steps=2, second_order=False)
    phi = adapt(quartic, rule, leaves(THETA), [TARGETS] * 2, 2)["x"].detach()
    expected = (4 * (phi - TARGETS - 1) ** 3).sum(dim=0)
    torch.testing.assert_close(meta_gradient(rule), expected)
    assert not torch.allclose(meta_gradient(rule), meta_gradient(GradientDescent(0.01, inner_steps=2)), rtol=1e-2)


def test_anchors_give_the_values_and_leave_the_derivatives():
    rule = GradientDescent(0.1, inner_steps=1)
    parameters = leaves(THETA)
    anchor = {"x": torch.tensor([[7.0, 8.0], [9.0, 10.0]], dtype=torch.float64)}
    phi = adapt(quadratic, rule, parameters, [TARGETS], 2, [anchor])["x"]
    assert torch.equal(phi, anchor["x"])
    jacobian = torch.autograd.grad(phi[1, 1], parameters["x"])[0]
    assert jacobian.tolist() == pytest.approx([0, 1 - 0.1 * 5])


def mixed(phi, targets):
    """Its Hessian couples x and y; `idle` plays no part."""
    return (phi["x"].sum(dim=1, keepdim=True) * phi["y"] * (phi["x"] - targets).square()).sum(dim=1)


@pytest.mark.parametrize("names", [["x", "y", "idle"], ["y"]])
def test_a_linearised_gradient_has_the_value_of_the_gradient_and_its_products_both_ways(names):
    generator = torch.Generator().manual_seed(0)
    sizes = {"x": 2, "y": 1, "idle": 3}
    phi = {n: torch.randn(2, k, generator=generator).double().requires_grad_() for n, k in sizes.items()}
    v, u = ([torch.randn(2, sizes[n], generator=generator).double() for n in which] for which in (sizes, names))
    found = linearised_gradient(mixed, phi, TARGETS, names)
    expected = inner_gradient(mixed, phi, TARGETS, True, names)
    products = []
    for gradient in (found, expected):
        jacobian = Jacobian([gradient[name] for name in names], list(phi.values()))
        products.append(ravel(jacobian.product(v) + jacobian.transposed_product(u)))
        torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(*products)
    assert products[0].norm() > 1


def test_parameters_without_a_part_in_the_loss_stay():
    theta = {**THETA, "idle": torch.ones(3, dtype=torch.float64)}
    rule = GradientDescent(0.1)
    phi, _ = adapt_step(quadratic, rule, expand_over_tasks(theta, 2), expand_over_tasks(theta, 2), TARGETS, 0)
    assert (phi["idle"] == 1).all()


def test_inner_gradient_keeps_a_graph_only_on_request():
    phi = {"x": THETA["x"].expand(2, 2).clone().requires_grad_()}
    assert inner_gradient(quartic, phi, TARGETS, differentiable=True)["x"].requires_grad
    assert not inner_gradient(quartic, phi, TARGETS, differentiable=False)["x"].requires_grad
