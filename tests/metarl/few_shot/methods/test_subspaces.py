"""T-nets and MT-nets against MAML, by hand, and against finite differences."""

import pytest
import torch
from torch import nn

from metarl.core.parameters import expand_over_tasks, ravel, unravel
from metarl.core.rules import GradientDescent
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.methods.subspaces import MaskedDescent, MTNet, TransformedMLP, drawn_mask, mask_probabilities
from metarl.few_shot.networks import MLP
from tests.metarl.few_shot.further_methods import ADAPTED, NOISY, make, rows, tasks_for, transformed, with_noise
from tests.probes import finite_differences

LOGITS = ("mask_logit.layers.0.linear", "mask_logit.layers.1.linear", "mask_logit.layers.2.linear")


def losses(method, theta, tasks):
    """Query losses, and the adapted parameters."""
    own = expand_over_tasks(theta, len(tasks))
    phi = method.states(own, tasks.support, 2)[-1]
    return NOISY.loss(method.predict(own, phi, tasks.query.inputs), tasks.query.targets), phi


def test_a_t_net_whose_matrices_are_the_identity_is_maml():
    torch.manual_seed(0)
    module = TransformedMLP((1, 4, 3, 1)).double()
    plain = MLP((1, 4, 3, 1)).double()
    with torch.no_grad():
        for layer, other in zip(module.layers, [*(b[0] for b in plain.blocks), plain.head], strict=True):
            other.weight.copy_(layer.linear.weight)
            other.bias.copy_(layer.linear.bias)
    tasks = tasks_for("", make("mt-net")[0])
    found, expected = (
        losses(method, method.meta_parameters(), tasks)[0]
        for method in (
            MAML(module, NOISY, GradientDescent(0.1, 2, adapted=ADAPTED)),
            MAML(plain, NOISY, GradientDescent(0.1, 2)),
        )
    )
    torch.testing.assert_close(found, expected)
    everything = MAML(module, NOISY, GradientDescent(0.1, 2))
    assert not torch.allclose(losses(everything, everything.meta_parameters(), tasks)[0], expected)


def test_inner_steps_leave_the_matrices_alone_and_move_outputs_along_t_t():
    torch.manual_seed(0)
    layer = transformed().layers[1]
    x, direction = torch.randn(4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    (layer(x) @ direction).backward()
    moved = layer.transform @ ((layer.linear.weight - 0.1 * layer.linear.weight.grad) @ x)
    t = layer.transform
    torch.testing.assert_close(moved - t @ layer.linear.weight @ x, -0.1 * x.square().sum() * t @ t.T @ direction)


def test_an_mt_net_with_all_masks_on_is_the_t_net_and_with_all_off_moves_nothing():
    method, theta = make("mt-net")
    tasks = tasks_for("mt-net", method)
    t_net = MAML(method.module, NOISY, GradientDescent(0.1, 2, adapted=ADAPTED))
    without = {name: value for name, value in theta.items() if name not in LOGITS}
    on, off = ({**theta, **{n: torch.full_like(theta[n], v) for n in LOGITS}} for v in (1e3, -1e3))
    expected, phi = losses(t_net, without, tasks)
    torch.testing.assert_close(losses(method, on, tasks)[0], expected)
    torch.testing.assert_close(losses(method, on, tasks)[1], phi)
    for name, value in losses(method, off, tasks)[1].items():
        assert torch.equal(value, without[name].expand_as(value))


def test_a_mask_moves_whole_rows_and_their_bias_in_all_inner_steps():
    method, theta = make("mt-net")
    tasks = tasks_for("mt-net", method)
    phi = losses(method, theta, tasks)[1]
    uniform = tasks.support.noise.split([4, 3, 1], dim=1)
    drawn = [u.logit() + theta[name] > 0 for u, name in zip(uniform, LOGITS, strict=True)]
    assert len({tuple(row.tolist()) for row in drawn[0]}) > 1  # tasks differ
    for index, mask in enumerate(drawn):
        for name in ("weight", "bias"):
            key = f"layers.{index}.linear.{name}"
            changed = (phi[key] != theta[key]).flatten(2).any(dim=2) if name == "weight" else phi[key] != theta[key]
            assert torch.equal(changed, mask)
        assert torch.equal(phi[f"layers.{index}.transform"][0], theta[f"layers.{index}.transform"])
    share = method.further_metrics(expand_over_tasks(theta, len(tasks)), tasks)
    torch.testing.assert_close(share["moving_units"], torch.cat(drawn, dim=1).double().mean(dim=1))


def test_masks_are_drawn_with_the_probability_of_their_logit():
    logit = torch.tensor([[-1.0, 0.0, 2.0]]).expand(20_000, 3)
    masks = drawn_mask(logit, torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(masks.mean(dim=0), logit[0].sigmoid(), rtol=0, atol=0.01)


def test_the_gradient_of_weights_is_the_derivative_and_that_of_logits_the_relaxed_masks():
    method, theta = make("mt-net")
    tasks = tasks_for("mt-net", method)
    gradients = {n: v.sum(dim=0) for n, v in method.gradient(rows(theta, 3), tasks, {2: torch.tensor(1.0)})[0].items()}
    weights = {name: value for name, value in theta.items() if name not in LOGITS}

    def loss(vector):
        return losses(method, {**theta, **unravel(vector, weights)}, tasks)[0].sum()

    slopes = finite_differences(loss, ravel(list(weights.values())))
    torch.testing.assert_close(ravel([gradients[name] for name in weights]), slopes, rtol=1e-5, atol=1e-7)

    names = [f"mask.{name.removeprefix('mask_logit.')}" for name in LOGITS]
    own = expand_over_tasks(weights, 3)
    uniform = tasks.support.noise.split([4, 3, 1], dim=1)
    masks = {n: drawn_mask(theta[key], u) for n, key, u in zip(names, LOGITS, uniform, strict=True)}

    def masked_loss(vector):
        given = {**own, **unravel(vector, masks)}
        phi = MAML.states(method, given, tasks.support, 2)[-1]
        return NOISY.loss(method.call(phi, tasks.query.inputs), tasks.query.targets).sum()

    in_masks = unravel(finite_differences(masked_loss, ravel(list(masks.values()))), masks)
    for name, key, u in zip(names, LOGITS, uniform, strict=True):
        soft = torch.sigmoid(theta[key] + u.logit())
        expected = (in_masks[name] * soft * (1 - soft)).sum(dim=0)
        torch.testing.assert_close(gradients[key], expected, rtol=1e-5, atol=1e-7)


def test_other_noise_is_another_mask():
    method, theta = make("mt-net")
    tasks = tasks_for("mt-net", method)
    other = with_noise(tasks, 1 - tasks.support.noise)
    assert not torch.allclose(losses(method, theta, tasks)[0], losses(method, theta, other)[0])


def test_probabilities_start_at_a_half():
    method, _ = make("mt-net")
    found = mask_probabilities(method.meta_parameters())
    assert {name: len(value) for name, value in found.items()} == {
        f"layers.{i}.linear": n for i, n in enumerate((4, 3, 1))
    }
    assert all((value == 0.5).all() for value in found.values())


def test_what_cannot_be_masked_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(2))

    with pytest.raises(ValueError, match="units"):
        MTNet(Odd(), NOISY, MaskedDescent()).meta_parameters()
    with pytest.raises(ValueError, match="rule"):
        MTNet(transformed(), NOISY, GradientDescent())
