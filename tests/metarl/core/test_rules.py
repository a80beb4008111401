"""Adaptation rules: their steps by hand, their meta-gradients against finite differences, and their schedules."""

import math
from dataclasses import replace

import pytest
import torch

from metarl.core.adaptation import adapt_step
from metarl.core.parameters import expand_over_tasks, ravel, unravel
from metarl.core.rules import GradientDescent, LayerStepSizes, MetaSGD
from metarl.core.settings import SettingError
from tests.losses import TARGETS, THETA, adapt, coupled, leaves
from tests.probes import finite_differences


def test_step_sizes_at_test_time_are_alpha_then_half_of_it():
    rule = GradientDescent(0.2, inner_steps=1)
    gradients, zero = {"x": torch.ones(2, 2)}, {"x": torch.zeros(2, 2)}
    sizes = [-rule.update(THETA, zero, gradients, step)["x"][0, 0].item() for step in range(3)]
    assert sizes == pytest.approx([0.2, 0.1, 0.1])
    trained = GradientDescent(0.2, inner_steps=2)
    assert -trained.update(THETA, zero, gradients, 1)["x"][0, 0].item() == pytest.approx(0.2)


def test_averaged_steps_have_the_sizes_alpha_over_s_trained_or_not():
    gradients, zero = {"x": torch.ones(2, 2)}, {"x": torch.zeros(2, 2)}
    for trained in (1, 3):
        rule = GradientDescent(0.6, inner_steps=trained, averaged=True)
        sizes = [-rule.update(THETA, zero, gradients, step)["x"][0, 0].item() for step in range(4)]
        assert sizes == pytest.approx([0.6, 0.3, 0.2, 0.15])


THETA_2 = {**THETA, "y": torch.tensor([0.4], dtype=torch.float64)}

ROWS_2 = expand_over_tasks(THETA_2, 2)

ONLY_Y = ("y",)

RULES = {
    "gradient descent": GradientDescent(0.03, inner_steps=2),
    "meta-sgd": MetaSGD(0.03, inner_steps=2),
    "layer step sizes": LayerStepSizes(0.03, inner_steps=2),
    "part": GradientDescent(0.03, inner_steps=2, adapted=ONLY_Y),
    "part, meta-sgd": MetaSGD(0.03, inner_steps=2, adapted=ONLY_Y),
    "context": GradientDescent(0.03, inner_steps=2, adapted=ONLY_Y, from_zero=True),
}


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
    rule = replace(RULES[kind], inner_steps=1, second_order=False)
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
    per_element, per_step = MetaSGD(0.3, inner_steps=2), LayerStepSizes(0.3, inner_steps=2)
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


def test_names_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"adapted = 'head\.\*'.*x, y"):
        GradientDescent(adapted=("head.*",)).meta_parameters(THETA_2)
    with pytest.raises(ValueError, match=r"'step_size\.x'"):
        MetaSGD().meta_parameters({"step_size.x": torch.ones(1)})


def test_a_milestone_changes_the_step_size_from_the_iteration_that_starts_there():
    rule = GradientDescent(0.2, milestones=(3, 5), milestone_step_sizes=(0.05, 0.01))
    assert [rule.at(iteration).step_size for iteration in range(7)] == [0.2, 0.2, 0.2, 0.05, 0.05, 0.01, 0.01]
    one, zero = {"x": torch.ones(2, 2)}, {"x": torch.zeros(2, 2)}
    moved = rule.at(3).update(THETA, zero, one, 0)["x"]
    assert torch.equal(moved, torch.full((2, 2), -0.05))
    assert rule.at(5) == GradientDescent(0.01)  # nothing is scheduled any more


def test_everything_but_the_step_size_stays_at_a_milestone():
    rule = GradientDescent(
        0.2, 2, False, 0.25, milestones=(1,), milestone_step_sizes=(0.1,), adapted=("y",), from_zero=True
    )
    assert rule.at(1) == replace(rule, step_size=0.1, milestones=(), milestone_step_sizes=())


def test_a_rule_without_milestones_is_the_same_at_every_iteration():
    for rule in RULES.values():
        assert rule.at(0) is rule.at(1000) is rule


@pytest.mark.parametrize(
    ("milestones", "sizes", "field"),
    [
        ((3, 5), (0.1,), "milestones"),
        ((), (0.1,), "milestones"),
        ((5, 3), (0.1, 0.2), "milestones"),
        ((3, 3), (0.1, 0.2), "milestones"),
        ((0,), (0.1,), "milestones"),
        ((3.5,), (0.1,), "milestones"),
        ([3], (0.1,), "milestones"),
        ((3,), (0.0,), "milestone_step_sizes"),
    ],
)
def test_milestones_that_cannot_be_are_refused(milestones, sizes, field):
    with pytest.raises(SettingError, match=rf"^{field} = "):
        GradientDescent(0.2, milestones=milestones, milestone_step_sizes=sizes)


@pytest.mark.parametrize("kind", [MetaSGD, LayerStepSizes])
def test_learned_step_sizes_have_no_milestones(kind):
    with pytest.raises(SettingError, match=r"^milestones = "):
        kind(0.1, milestones=(3,), milestone_step_sizes=(0.05,))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: GradientDescent(inner_steps=-1), "inner_steps"),
        (lambda: MetaSGD(inner_steps=0.5), "inner_steps"),
        (lambda: GradientDescent(math.nan), "step_size"),
        (lambda: LayerStepSizes(0.0), "step_size"),
        (lambda: GradientDescent(extra_step_scale=-0.5), "extra_step_scale"),
        (lambda: GradientDescent(second_order=1), "second_order"),
        (lambda: GradientDescent(adapted="mean.*"), "adapted"),
    ],
)
def test_settings_out_of_bounds_name_their_field(make, field):
    with pytest.raises(SettingError, match=rf"^{field} = "):
        make()
