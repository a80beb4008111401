"""Optimisers coordinate by coordinate: preprocessing by hand, permutations, and the usual ones against torch's."""

import math

import pytest
import torch

from metarl.core.parameters import expand_over_tasks
from metarl.few_shot.methods.learned_optimisers import CoordinateLSTM, LearnedOptimiser, TunedOptimiser, log_and_sign
from metarl.few_shot.quadratics import QUADRATIC
from tests.metarl.few_shot.further_methods import linear, make, tasks_for

TORCHS = {
    "sgd": lambda x: torch.optim.SGD([x], 0.02),
    "momentum": lambda x: torch.optim.SGD([x], 0.02, momentum=0.9, nesterov=True),
    "rmsprop": lambda x: torch.optim.RMSprop([x], 0.02),
    "adam": lambda x: torch.optim.Adam([x], 0.02),
}


def test_preprocessing_by_hand():
    values = torch.tensor([math.e, -1.0, math.exp(-10), 1e-6, -1e-6, 0.0], dtype=torch.float64)
    expected = [[0.1, 1], [0, -1], [-1, 1], [-1, 1e-6 * math.exp(10)], [-1, -1e-6 * math.exp(10)], [-1, 0]]
    torch.testing.assert_close(log_and_sign(values, 10.0), torch.tensor(expected, dtype=torch.float64))
    float32 = log_and_sign(torch.tensor([0.0, 1e-40]), 10.0)
    assert float32.isfinite().all()


@pytest.mark.parametrize("log_scale", [0.0, 5.0])
def test_permuted_coordinates_have_permuted_updates(log_scale):
    torch.manual_seed(0)
    lstm = CoordinateLSTM(3, log_scale=log_scale).double()
    method = LearnedOptimiser(linear(), QUADRATIC, 6, 3, optimiser=lstm)
    theta, tasks = method.meta_parameters(), tasks_for("learned optimiser", method)
    order = torch.tensor([2, 0, 3, 1])
    method.module.weight.data.zero_()
    support = tasks.support
    moved = type(support)(support.inputs[:, :, order], support.targets, support.noise[:, order])
    found, expected = (
        method.states(expand_over_tasks(theta, 3), of, 6)[-1]["parameters"] for of in (moved, tasks.support)
    )
    torch.testing.assert_close(found, expected[:, order])
    assert not torch.allclose(found, expected)


def test_a_coordinate_does_not_see_the_others():
    method, theta = make("learned optimiser")
    gradient = torch.randn(2, 4, dtype=torch.float64)
    memory = method.remembered(theta, gradient)
    update, memory = method.proposed(theta, gradient, memory)
    changed = gradient.clone()
    changed[0, 1] += 1
    other, _ = method.proposed(theta, changed, method.remembered(theta, gradient))
    assert (other != update).nonzero().tolist() == [[0, 1]]
    assert {name: value.shape for name, value in memory.items()} == dict.fromkeys(("h0", "c0", "h1", "c1"), (2, 4, 3))


def test_the_lstm_is_torchs_own_with_two_layers():
    torch.manual_seed(0)
    own = CoordinateLSTM(5, layers=2, output_scale=0.3).double()
    whole = torch.nn.LSTM(1, 5, num_layers=2).double()
    for layer, cell in enumerate(own.cells):
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(whole, f"{kind}_l{layer}").data.copy_(getattr(cell, kind))
    gradients = torch.randn(4, 3, dtype=torch.float64)
    memory, found = [torch.zeros(3, 5, dtype=torch.float64)] * 4, []
    for gradient in gradients:
        update, memory = own(gradient, memory)
        found.append(update)
    expected = 0.3 * own.head(whole(gradients.unsqueeze(2))[0]).squeeze(2)
    torch.testing.assert_close(torch.stack(found), expected)


@pytest.mark.parametrize("name", TORCHS)
def test_usual_optimisers_are_torchs(name):
    method = TunedOptimiser(linear(), QUADRATIC, 6, 3, 0.5, algorithm=name, step_size=0.02)
    tasks = tasks_for("adam", method)
    states = method.states(expand_over_tasks(method.meta_parameters(), 3), tasks.support, 6)
    for task in range(3):
        x = states[0]["parameters"][task].clone().requires_grad_()
        optimiser = TORCHS[name](x)
        for step in range(1, 7):
            optimiser.zero_grad()
            (tasks.support.inputs[task] @ x - tasks.support.targets[task, :, 0]).square().sum().backward()
            optimiser.step()
            torch.testing.assert_close(states[step]["parameters"][task], x.detach())


def test_it_predicts_with_the_modules_own_shapes():
    method, theta = make("adam")
    tasks = tasks_for("adam", method)
    state = method.states(expand_over_tasks(theta, 3), tasks.support, 1)[-1]
    found = method.predict(theta, state, tasks.query.inputs)
    torch.testing.assert_close(found, tasks.query.inputs @ state["parameters"].unsqueeze(2))


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match="nearest is adam"):
        TunedOptimiser(linear(), QUADRATIC, algorithm="adams")
