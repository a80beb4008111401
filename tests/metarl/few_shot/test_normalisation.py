"""Batch norm against torch's own, with derivatives of both orders, and with fixed statistics."""

import pytest
import torch

from metarl.core.parameters import parameters_of
from metarl.few_shot.networks import ConvNet
from metarl.few_shot.normalisation import BatchNorm, batch_statistics


def test_batch_norm_uses_the_batch_at_hand():
    layer = BatchNorm(4).double()
    inputs = 3 * torch.randn(5, 2, 2, 4, dtype=torch.float64) + 7
    expected = (inputs - inputs.mean((0, 1, 2))) / (inputs.var((0, 1, 2), correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(layer(inputs), expected)
    torch.testing.assert_close(layer.eval()(inputs), expected)
    small = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x).sin(), (small,))


def test_fixed_statistics_are_used_as_torchs_evaluation_uses_them():
    layer, torchs = BatchNorm(2).double(), torch.nn.BatchNorm1d(2, affine=False).double().eval()
    torchs.running_mean, torchs.running_var = torch.tensor([[1.0, 2.0], [0.0, 3e-5]], dtype=torch.float64)
    layer.mean, layer.variance = torchs.running_mean, torchs.running_var
    inputs = torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(layer(inputs), torchs(inputs))


@pytest.mark.parametrize("tasks", [None, 3])
def test_batch_norm_is_torchs_with_derivatives_of_both_orders(tasks):
    layer, lead = BatchNorm(4).double(), () if tasks is None else (tasks,)
    inputs = torch.randn(*lead, 5, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(*lead, 5, 4, dtype=torch.float64, requires_grad=True)

    def ours(inputs):
        return layer(inputs) if tasks is None else torch.func.vmap(layer)(inputs)

    def torchs(inputs):
        norm = torch.nn.BatchNorm1d(4, affine=False, track_running_stats=False)
        return torch.stack([norm(each) for each in inputs.view(-1, 5, 4)]).view_as(inputs)

    found = []
    for norm in (ours, torchs):
        [first] = torch.autograd.grad((norm(inputs) * weights).sin().sum(), inputs, create_graph=True)
        found.append((norm(inputs), first, *torch.autograd.grad(first.square().sum(), (inputs, weights))))
    torch.testing.assert_close(found[0], found[1])


def test_a_scaled_weight_normalises_a_product():
    layer = BatchNorm(4).double()
    layer.shift.data.normal_()
    rows = torch.randn(6, 3, dtype=torch.float64) + 2
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer.of_product(rows, weight), layer(rows @ weight))
    assert torch.autograd.gradgradcheck(lambda w: layer.of_product(rows, w).sin(), (weight,))


def test_statistics_of_some_calls_take_the_place_of_the_batchs():
    network = ConvNet((8, 8, 1), 3, filters=12)
    images = torch.rand(3, 2, 8, 8, 1)
    found = batch_statistics(network, [lambda batch=batch: network(batch) for batch in images])
    assert set(found) == {f"blocks.{i}.norm.{which}" for i in range(4) for which in ("mean", "variance")}
    first = torch.stack([network.blocks[0].convolution(batch).flatten(0, 2) for batch in images])
    torch.testing.assert_close(found["blocks.0.norm.mean"], first.mean(dim=(0, 1)))
    torch.testing.assert_close(found["blocks.0.norm.variance"], first.var(dim=1).mean(dim=0))
    fixed = {**parameters_of(network), **found}
    together = torch.func.functional_call(network, fixed, (images.flatten(0, 1),))
    alone = torch.cat([torch.func.functional_call(network, fixed, (one,)) for one in images.view(6, 1, 8, 8, 1)])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together, network(images.flatten(0, 1)), atol=1e-3)
