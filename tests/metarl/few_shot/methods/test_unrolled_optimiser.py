"""The training of optimisers against a slow loop in which gradients are constants."""

import pytest
import torch

from metarl.core.parameters import expand_over_tasks, ravel, unravel
from metarl.few_shot.methods.learned_optimisers import TunedOptimiser
from metarl.few_shot.quadratics import QUADRATIC
from tests.metarl.few_shot.further_methods import OPTIMISERS, linear, make, rows, tasks_for, with_noise
from tests.probes import finite_differences


def quadratic(tasks, task, x):
    return (tasks.support.inputs[task] @ x - tasks.support.targets[task, :, 0]).square().sum()


def gradient_at(tasks, task, x):
    w, y = tasks.support.inputs[task], tasks.support.targets[task, :, 0]
    return 2 * w.T @ (w @ x - y)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("piece", [0, 1])
def test_its_gradient_is_that_of_one_piece_with_constant_gradients(name, piece):
    method, theta = make(name)
    tasks = tasks_for(name, method)
    states = method.states(expand_over_tasks(theta, 3), tasks.support, 6)
    begin, constants = states[3 * piece], [states[3 * piece + step]["parameters"] for step in range(3)]
    slopes = [torch.stack([gradient_at(tasks, t, x[t]) for t in range(3)]) for x in constants]

    def loss(values):
        """The sum of f over the piece, from a fixed beginning, with fixed gradients g_t."""
        point, memory, total = begin["parameters"], begin["memory"], 0
        for slope in slopes:
            update, memory = method.proposed(values, slope, memory)
            point = point + update
            total = total + sum(quadratic(tasks, t, point[t]) for t in range(3))
        return total.detach()

    schedule = {"piece": torch.tensor(float(piece))}
    gradients, losses, metrics = method.gradient(rows(theta, 3), tasks, schedule)
    torch.testing.assert_close(losses.sum(), loss(theta))
    found = ravel([value[0] for value in gradients.values()])
    expected = finite_differences(lambda vector: loss(unravel(vector, theta)), ravel(list(theta.values())))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    last = states[3 * piece + 3]["parameters"]
    torch.testing.assert_close(metrics, torch.stack([quadratic(tasks, t, last[t]) / 4 for t in range(3)]))


def test_iterations_learn_from_the_pieces_in_turn():
    method, _ = make("adam")
    assert [method.schedule(iteration)["piece"] for iteration in range(5)] == [0, 1, 0, 1, 0]


def test_starting_points_are_the_modules_own_with_noise():
    method, theta = make("adam")
    tasks = tasks_for("adam", method)
    found = method.first_state(theta, tasks.support)["parameters"]
    torch.testing.assert_close(found, method.module.weight.detach() + 0.5 * tasks.support.noise)
    other = with_noise(tasks, -tasks.support.noise)
    assert not torch.equal(method.first_state(theta, other.support)["parameters"], found)


def test_one_step_of_gradient_descent_by_hand():
    method = TunedOptimiser(linear(), QUADRATIC, 6, 3, algorithm="sgd", step_size=0.05)
    theta = method.meta_parameters()
    tasks = tasks_for("adam", method)
    before, after = method.states(expand_over_tasks(theta, 3), tasks.support, 1)
    for task in range(3):
        x = before["parameters"][task]
        torch.testing.assert_close(after["parameters"][task], x - 0.05 * gradient_at(tasks, task, x))
