"""The LSTM meta-learner: gradient descent as a special case, its gates by hand, constants in its gradient."""

import pytest
import torch
from torch.func import functional_call

from metarl.core.parameters import expand_over_tasks, ravel, unravel
from metarl.few_shot.methods.learned_optimisers import log_and_sign
from metarl.few_shot.methods.meta_lstm import GateLSTM, MetaLSTM
from tests.metarl.few_shot.further_methods import NOISY, make, rows, smooth, tasks_for
from tests.probes import finite_differences

NAMES = ("hidden.weight", "hidden.bias", "head.weight", "head.bias")


def slopes(method, values, x, y):
    """The loss of one task and its gradient as one vector."""
    point = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    loss = (functional_call(method.module, point, (x,)) - y).square().mean()
    return loss.detach(), ravel(torch.autograd.grad(loss, list(point.values())))


def test_with_f_one_and_i_alpha_an_update_is_gradient_descent():
    method = MetaLSTM(smooth(), NOISY, gates=GateLSTM(3).double(), total_steps=3)
    theta = method.meta_parameters()
    for name in theta:
        if "forget" in name or "input" in name:
            theta[name] = torch.zeros_like(theta[name])
    theta["meta_lstm.forget.bias"] += 60.0  # f = 1
    theta["meta_lstm.input.bias"] += torch.tensor(0.05, dtype=torch.float64).logit()
    tasks = tasks_for("meta-lstm", method)
    found = method.states(expand_over_tasks(theta, 3), tasks.support, 3)[-1]["parameters"]
    for task in range(3):
        values = {name: theta[name] for name in NAMES}
        for _ in range(3):
            _, slope = slopes(method, values, tasks.support.inputs[task], tasks.support.targets[task])
            values = unravel(ravel(list(values.values())) - 0.05 * slope, values)
        torch.testing.assert_close(found[task], ravel(list(values.values())))


def slow(method, theta, tasks, constants=None):
    """Query losses by a loop over tasks and coordinates' formulas; losses and gradients may be given constants."""
    gates, total, seen = method.gates, [], []
    own = {name.removeprefix("meta_lstm."): value for name, value in theta.items() if name.startswith("meta_lstm.")}
    for task in range(3):
        values = {name: theta[name] for name in NAMES}
        point = ravel(list(values.values()))
        h = c = torch.zeros(len(point), gates.hidden, dtype=torch.float64)
        raw_f = raw_i = torch.zeros_like(point)
        for step in range(method.total_steps):
            found = slopes(method, unravel(point, values), tasks.support.inputs[task], tasks.support.targets[task])
            seen.append(found)
            loss, slope = found if constants is None else constants[task * method.total_steps + step]
            inputs = torch.cat(
                [log_and_sign(loss.expand_as(slope), gates.log_scale), log_and_sign(slope, gates.log_scale)], dim=1
            )
            cell = {name.removeprefix("cell."): value for name, value in own.items() if name.startswith("cell.")}
            h, c = functional_call(gates.cell, cell, (inputs, (h, c)))
            w_f, w_i = own["forget.weight"][0], own["input.weight"][0]
            raw_f, raw_i = (
                h @ w[:-2] + w[-2] * point + w[-1] * raw + own[f"{name}.bias"]
                for w, raw, name in ((w_f, raw_f, "forget"), (w_i, raw_i, "input"))
            )
            point = raw_f.sigmoid() * point - raw_i.sigmoid() * slope
        outputs = functional_call(method.module, unravel(point, values), (tasks.query.inputs[task],))
        total.append((outputs - tasks.query.targets[task]).square().mean())
    return torch.stack(total).detach(), seen


def test_its_updates_are_those_of_the_formulas_and_its_gradient_takes_losses_and_slopes_as_constants():
    method, theta = make("meta-lstm")
    tasks = tasks_for("meta-lstm", method)
    gradients, losses, _ = method.gradient(rows(theta, 3), tasks, {})
    expected, constants = slow(method, theta, tasks)
    torch.testing.assert_close(losses, expected)
    point = ravel(list(theta.values()))
    directions = torch.randn(6, len(point), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = ravel([value[0] for value in gradients.values()])
    for direction in directions:
        slope = finite_differences(
            lambda t, d=direction: slow(method, unravel(point + t * d, theta), tasks, constants)[0].sum(),
            torch.zeros(1, dtype=torch.float64),
        )
        torch.testing.assert_close(found @ direction, slope[0], rtol=1e-5, atol=1e-7)


def test_the_first_updates_are_small_steps():
    torch.manual_seed(0)
    gates = GateLSTM()
    assert 4 <= gates.forget.bias.item() <= 5
    assert -5 <= gates.input.bias.item() <= -4
    memory = {"h": torch.zeros(2, 20), "c": torch.zeros(2, 20), "forget": torch.zeros(2), "input": torch.zeros(2)}
    moved, memory = gates(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 10.0]), torch.ones(2), memory)
    assert 0.97 < moved[0] < 1
    assert 0.05 < moved[0] - moved[1] < 0.2
    assert memory["h"].shape == (2, 20)


@pytest.mark.parametrize("steps", [0, 2.5])
def test_a_number_of_updates_out_of_bounds_is_refused(steps):
    with pytest.raises(ValueError, match="total_steps"):
        MetaLSTM(smooth(), NOISY, total_steps=steps)
