"""Adam as a function: against torch's own, and by hand."""

import copy

import pytest
import torch

from metarl.core.adam import adam_step, initial_adam_state


def random_gradients(parameters):
    return {name: torch.randn_like(value) for name, value in parameters.items()}


def test_several_steps_are_those_of_torch_to_the_last_bit():
    torch.manual_seed(0)
    found = {"w": torch.randn(3, 2, dtype=torch.float64), "b": torch.randn(2, dtype=torch.float64)}
    theirs = {name: torch.nn.Parameter(value.clone()) for name, value in found.items()}
    optimiser = torch.optim.Adam(theirs.values(), lr=0.03, fused=True)
    state = initial_adam_state(found)
    for _ in range(5):
        gradients = random_gradients(found)
        for name, value in theirs.items():
            value.grad = gradients[name].clone()
        optimiser.step()
        found, state = adam_step(found, gradients, state, 0.03)
    for name, value in theirs.items():
        assert torch.equal(found[name], value.detach())


@pytest.mark.parametrize("gradient", [3.0, -1e-7, 1e-9])
def test_the_first_step_by_hand_has_its_epsilon_outside_the_root(gradient):
    """m^ = g and v^ = g^2 after the bias correction, so that the step is g / (|g| + 1e-8)."""
    x = {"x": torch.tensor([2.0], dtype=torch.float64)}
    moved, state = adam_step(x, {"x": torch.tensor([gradient], dtype=torch.float64)}, initial_adam_state(x), 0.5)
    assert moved["x"].item() == pytest.approx(2 - 0.5 * gradient / (abs(gradient) + 1e-8), rel=1e-12)
    assert state["count"].item() == 1
    assert state["mean"]["x"].item() == pytest.approx(0.1 * gradient)
    assert state["square"]["x"].item() == pytest.approx(0.001 * gradient**2)


def test_the_second_step_by_hand():
    x, gradients = {"x": torch.tensor([0.0], dtype=torch.float64)}, (1.0, -3.0)
    state = initial_adam_state(x)
    for gradient in gradients:
        x, state = adam_step(x, {"x": torch.tensor([gradient], dtype=torch.float64)}, state, 0.1)
    mean = (0.9 * 0.1 * 1.0 + 0.1 * -3.0) / (1 - 0.9**2)
    square = (0.999 * 0.001 * 1.0 + 0.001 * 9.0) / (1 - 0.999**2)
    assert x["x"].item() == pytest.approx(-0.1 / (1 + 1e-8) - 0.1 * mean / (square**0.5 + 1e-8), rel=1e-12)


def test_arguments_stay_as_they_are():
    x = {"x": torch.randn(3)}
    state, gradients = initial_adam_state(x), random_gradients(x)
    before = copy.deepcopy((x, gradients, state))
    adam_step(x, gradients, state, 0.1)
    for found, expected in ((x, before[0]), (gradients, before[1]), (state["mean"], before[2]["mean"])):
        assert torch.equal(found["x"], expected["x"])
    assert state["count"] == before[2]["count"] == 0


def test_parameters_are_handled_apart_and_carry_no_graph():
    x = {"a": torch.randn(2, requires_grad=True), "b": torch.randn(4)}
    gradients = random_gradients(x)
    together, state = adam_step(x, gradients, initial_adam_state(x), 0.1)
    alone, _ = adam_step({"b": x["b"]}, {"b": gradients["b"]}, initial_adam_state({"b": x["b"]}), 0.1)
    assert torch.equal(together["b"], alone["b"])
    assert not together["a"].requires_grad
    assert set(state["mean"]) == set(state["square"]) == {"a", "b"}
