"""The inner loop on losses simple enough to know the answer."""

from dataclasses import replace

import pytest
import torch

from metarl.core.adaptation import (
    GradientDescent,
    LayerStepSizes,
    MetaSGD,
    adapt_step,
    adaptation_path,
    inner_gradient,
    linearised_gradient,
)
from metarl.core.jacobian import Jacobian
from metarl.core.parameters import call_per_task, expand_over_tasks, parameters_of, ravel, unravel
from metarl.rl.policies import WithContext
from tests.probes import finite_differences

CURVATURE = torch.tensor([[1.0, 3.0], [2.0, 5.0]], dtype=torch.float64)  # (M, n)
TARGETS = torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
THETA = {"x": torch.tensor([0.3, 0.7], dtype=torch.float64)}
ROWS = expand_over_tasks(THETA, 2)


def adapt(loss, rule, theta, supports, tasks, *anchors):
    """The end of the path."""
    return adaptation_path(loss, rule, expand_over_tasks(theta, tasks), supports, *anchors)[-1]


def quadratic(phi, targets):
    """sum_i c_i (x_i - target_i)^2 / 2 for each task."""
    return (0.5 * CURVATURE[: len(targets)] * (phi["x"] - targets).square()).sum(dim=1)


def quartic(phi, targets):
    return (phi["x"] - targets).pow(4).sum(dim=1)


def leaves(theta):
    return {name: value.clone().requires_grad_() for name, value in theta.items()}


def test_a_step_is_the_step_size_times_the_tasks_own_gradient():
    rule = GradientDescent(0.1)
    phi, norm = adapt_step(quadratic, rule, ROWS, rule.start(ROWS), TARGETS, 0)
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
    phi = rule.start(ROWS)
    for step in range(2):
        phi, _ = adapt_step(quartic, rule, ROWS, phi, TARGETS, step)
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


THETA_2 = {**THETA, "y": torch.tensor([0.4], dtype=torch.float64)}
ROWS_2 = expand_over_tasks(THETA_2, 2)
ONLY_Y = ("y",)
RULES = {
    "gradient descent": GradientDescent(0.03, steps=2),
    "meta-sgd": MetaSGD(0.03, steps=2),
    "layer step sizes": LayerStepSizes(0.03, steps=2),
    "part": GradientDescent(0.03, steps=2, adapted=ONLY_Y),
    "part, meta-sgd": MetaSGD(0.03, steps=2, adapted=ONLY_Y),
    "context": GradientDescent(0.03, steps=2, adapted=ONLY_Y, from_zero=True),
}


def coupled(phi, targets):
    """A loss in which x and y meet, so that no Hessian is block diagonal."""
    return quartic(phi, targets) + (phi["x"].square() * phi["y"]).sum(dim=1) + phi["y"].pow(4).sum(dim=1)


def varied(rule):
    """Meta-parameters of a rule whose step sizes differ from each other."""
    theta = rule.meta_parameters(THETA_2)
    return {
        name: value * torch.linspace(1, 2, value.numel(), dtype=value.dtype).view_as(value)
        if name.startswith("step_size.")
        else value
        for name, value in theta.items()
    }


@pytest.mark.parametrize("kind", RULES)
def test_the_meta_gradient_of_every_rule_is_the_derivative(kind):
    rule = RULES[kind]
    theta = varied(rule)

    def objective(vector):
        phi = adapt(coupled, rule, leaves(unravel(vector, theta)), [TARGETS, TARGETS - 0.5], 2)
        return coupled(phi, TARGETS + 1).sum().detach()

    parameters = leaves(theta)
    phi = adapt(coupled, rule, parameters, [TARGETS, TARGETS - 0.5], 2)
    gradient = ravel(torch.autograd.grad(coupled(phi, TARGETS + 1).sum(), list(parameters.values())))
    expected = finite_differences(objective, ravel(list(theta.values())))
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", RULES)
def test_every_rule_steps_alike_with_and_without_a_graph_and_one_task_at_a_time(kind):
    rule = RULES[kind]
    theta, supports = varied(rule), [TARGETS, TARGETS - 0.5, TARGETS + 0.5]  # the third step is after the trained ones
    expected = adapt(coupled, rule, leaves(theta), supports, 2)
    rows, row = expand_over_tasks(theta, 2), expand_over_tasks(theta, 1)
    phi, single = rule.start(rows), [rule.start(row) for _ in range(2)]
    for step, data in enumerate(supports):
        phi, _ = adapt_step(coupled, rule, rows, phi, data, step)
        single = [adapt_step(coupled, rule, row, single[m], data[m : m + 1], step)[0] for m in range(2)]
    assert set(phi) == set(THETA_2)
    for name in THETA_2:
        torch.testing.assert_close(phi[name], expected[name])
        torch.testing.assert_close(torch.cat([own[name] for own in single]), expected[name])


@pytest.mark.parametrize("kind", ["meta-sgd", "layer step sizes"])
def test_first_order_still_learns_the_step_sizes(kind):
    """The last step's size has the derivative -(meta-gradient at phi) . (inner gradient): no second derivatives."""
    rule = replace(RULES[kind], steps=1, second_order=False)
    theta = leaves(varied(rule))
    phi = adapt(coupled, rule, theta, [TARGETS], 2)
    found = torch.autograd.grad(coupled(phi, TARGETS + 1).sum(), theta["step_size.x"])[0]
    start = {
        name: value.detach().clone().requires_grad_() for name, value in rule.start(expand_over_tasks(theta, 2)).items()
    }
    inner = torch.autograd.grad(coupled(start, TARGETS).sum(), start["x"])[0]
    end = {name: value.detach().requires_grad_() for name, value in phi.items()}
    outer = torch.autograd.grad(coupled(end, TARGETS + 1).sum(), end["x"])[0]
    per_element = -(outer * inner).sum(dim=0)
    torch.testing.assert_close(found, per_element if kind == "meta-sgd" else per_element.sum()[None])


def test_learned_step_sizes_start_as_one_number_and_follow_their_own_shape():
    per_element, per_step = MetaSGD(0.3, steps=2), LayerStepSizes(0.3, steps=2)
    assert per_element.meta_parameters(THETA_2)["step_size.x"].tolist() == [0.3, 0.3]
    assert per_step.meta_parameters(THETA_2)["step_size.y"].tolist() == [0.3, 0.3]
    ones, zero = {"x": torch.ones(1, 2)}, {"x": torch.zeros(1, 2)}
    theta = expand_over_tasks({**THETA, "step_size.x": torch.tensor([0.5, 0.25])}, 1)
    assert per_element.update(theta, zero, ones, 1)["x"].tolist() == [[-0.5, -0.25]]
    steps = [per_step.update(theta, zero, ones, step)["x"][0, 0].item() for step in range(4)]
    assert steps == [-0.5, -0.25, -0.125, -0.125]


def test_a_part_of_the_parameters_adapts_and_the_rest_is_shared():
    rule = RULES["part"]
    phi, norm = adapt_step(coupled, rule, ROWS_2, rule.start(ROWS_2), TARGETS, 0)
    assert torch.equal(phi["x"], THETA_2["x"].expand(2, 2))
    torch.testing.assert_close((phi["y"] - THETA_2["y"]).norm(dim=1), 0.03 * norm)
    assert set(MetaSGD(adapted=ONLY_Y).meta_parameters(THETA_2)) == {"x", "y", "step_size.y"}


def test_a_context_starts_at_zero_for_every_task_and_has_no_meta_gradient():
    rule = RULES["context"]
    assert torch.equal(rule.start(ROWS_2)["y"], torch.zeros(2, 1, dtype=torch.float64))
    theta = leaves(THETA_2)
    phi = adapt(coupled, rule, theta, [TARGETS], 2)
    x, y = torch.autograd.grad(coupled(phi, TARGETS).sum(), [theta["x"], theta["y"]])
    assert (y == 0).all()
    assert (x != 0).all()


def test_a_module_reads_its_context_beside_its_inputs():
    module = WithContext(torch.nn.Linear(5, 2), size=2)
    theta = parameters_of(module)
    assert (theta["context"] == 0).all()
    phi = expand_over_tasks(theta, 3) | {"context": torch.randn(3, 2)}
    inputs = torch.randn(3, 4, 3)
    joined = torch.cat([inputs, phi["context"].unsqueeze(1).expand(3, 4, 2)], dim=-1)
    torch.testing.assert_close(call_per_task(module, phi, inputs), module.module(joined))


def test_names_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"adapted = 'head\.\*' fits no parameter; allowed: x, y"):
        GradientDescent(adapted=("head.*",)).meta_parameters(THETA_2)
    with pytest.raises(ValueError, match=r"'step_size\.x' has the name of a step size"):
        MetaSGD().meta_parameters({"step_size.x": torch.ones(1)})
