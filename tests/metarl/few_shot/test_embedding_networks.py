"""The embedding networks against torch's own layers, values and gradients, for one task and for several."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metarl.core.parameters import expand_over_tasks, parameters_of
from metarl.few_shot.embedding_networks import EmbeddingNet
from metarl.few_shot.methods.relation import RelationNet
from metarl.few_shot.normalisation import observed

BLOCKS = {"pooled": EmbeddingNet.POOLED[:3], "strided": EmbeddingNet.STRIDED[:3], "unpadded": EmbeddingNet.UNPADDED}


class Torchs(nn.Module):
    """The same network in torch's layers, on (N, C, H, W)."""

    def __init__(self, blocks, filters):
        super().__init__()
        layers = []
        for index, (stride, padding, pooled) in enumerate(blocks):
            layers += [nn.Conv2d(2 if index == 0 else filters, filters, 3, stride, padding, bias=False)]
            layers += [nn.BatchNorm2d(filters), nn.ReLU(), *[nn.MaxPool2d(2)] * pooled]
        self.layers = nn.Sequential(*layers)

    def forward(self, images):
        return self.layers(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def both(blocks):
    """Our network and torch's, with the same weights; some scales are negative, one is zero."""
    torch.manual_seed(0)
    ours = EmbeddingNet((21, 18, 2), 5, BLOCKS[blocks], as_map=True).double()
    for value in ours.parameters():
        value.data += 0.3 * torch.randn_like(value)
    for block in ours.blocks:
        block.norm.scale.data[:3] = torch.tensor([-1.2, -0.4, 0.0])
    torchs = Torchs(BLOCKS[blocks], 5).double()
    with torch.no_grad():
        convolutions = [layer for layer in torchs.layers if isinstance(layer, nn.Conv2d)]
        norms = [layer for layer in torchs.layers if isinstance(layer, nn.BatchNorm2d)]
        for block, convolution, norm in zip(ours.blocks, convolutions, norms, strict=True):
            convolution.weight.copy_(block.weight)
            norm.weight.copy_(block.norm.scale)
            norm.bias.copy_(block.norm.shift)
    return ours, torchs, convolutions, norms


@pytest.mark.parametrize("blocks", BLOCKS)
def test_embedding_is_torchs_with_its_gradients_and_statistics(blocks):
    ours, torchs, convolutions, norms = both(blocks)
    images = torch.rand(6, 21, 18, 2, dtype=torch.float64)
    with observed(ours) as seen:
        found = ours(images)
    expected = torchs(images)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for block, convolution, norm in zip(ours.blocks, convolutions, norms, strict=True):
        torch.testing.assert_close(block.weight.grad, convolution.weight.grad)
        torch.testing.assert_close(block.norm.shift.grad, norm.bias.grad)
        kept = block.norm.scale != 0  # pooled, the slope at a scale of zero is that of one side
        torch.testing.assert_close(block.norm.scale.grad[kept], norm.weight.grad[kept])
    for [moments], norm in zip(seen.values(), norms, strict=True):
        torch.testing.assert_close(0.1 * moments.mean, norm.running_mean)
        torch.testing.assert_close(0.9 + 0.1 * moments.unbiased, norm.running_var)


def test_fixed_statistics_are_torchs_running_ones():
    ours, torchs, _, norms = both("pooled")
    images = torch.rand(6, 21, 18, 2, dtype=torch.float64)
    torchs(images)
    fixed = {}
    for index, norm in enumerate(norms):
        fixed |= {f"blocks.{index}.norm.mean": norm.running_mean, f"blocks.{index}.norm.variance": norm.running_var}
    found = torch.func.functional_call(ours, fixed, (images[:2],))
    torch.testing.assert_close(found, torchs.eval()(images[:2]))


@pytest.mark.parametrize("blocks", BLOCKS)
def test_statistics_are_differentiable(blocks):
    net = both(blocks)[0].blocks[0].norm

    def moments(images):
        with observed(net) as seen:
            found = net(images, pooled=BLOCKS[blocks][0][2])
        [[of]] = seen.values()
        return found, of.mean, of.variance

    images = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(moments, (images,))


@pytest.mark.parametrize("blocks", BLOCKS)
def test_batch_norm_sees_each_task_by_itself(blocks):
    net = both(blocks)[0]
    images = torch.rand(3, 4, 21, 18, 2, dtype=torch.float64)
    theta = parameters_of(net)

    def gradient(call):
        own = {name: value.clone().requires_grad_() for name, value in theta.items()}
        found = call(own)
        weights = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
        return found, torch.autograd.grad((found * weights).sum(), list(own.values()))

    def call(own, inputs):
        return torch.func.functional_call(net, own, (inputs,))

    together = gradient(lambda own: torch.func.vmap(call, in_dims=(None, 0))(own, images))
    torch.testing.assert_close(together, gradient(lambda own: torch.stack([call(own, one) for one in images])))
    rows = gradient(lambda own: torch.func.vmap(call)(expand_over_tasks(own, 3), images))
    torch.testing.assert_close(together, rows)


def test_shapes():
    image = torch.rand(2, 28, 28, 1)
    assert EmbeddingNet((28, 28, 1))(image).shape == (2, 64)
    assert EmbeddingNet((28, 28, 1), blocks=EmbeddingNet.STRIDED)(image).shape == (2, 256)
    relation = EmbeddingNet((28, 28, 1), blocks=EmbeddingNet.UNPADDED, as_map=True)
    assert relation(image).shape == (2, 5, 5, 64)
    assert relation.output_shape == (5, 5, 64)
    count = sum(value.numel() for value in EmbeddingNet((28, 28, 1)).parameters())
    assert count == 111_936 - 4 * 64  # the published network has biases before its batch norms, which change nothing
    both_nets = (relation, RelationNet((5, 5, 64)))
    assert sum(v.numel() for net in both_nets for v in net.parameters()) == 223_441 - 6 * 64


def test_the_comparison_of_maps_is_that_of_joined_maps():
    torch.manual_seed(0)
    net = RelationNet((5, 5, 3), 4, 3).double()
    classes, queries = torch.randn(3, 5, 5, 3, dtype=torch.float64), torch.randn(7, 5, 5, 3, dtype=torch.float64)
    pairs = torch.stack([torch.cat([of_class, query], dim=2) for query in queries for of_class in classes])
    found = pairs.permute(0, 3, 1, 2)
    for block in (net.first, net.second):
        found = F.conv2d(found, block.weight, padding=1)
        found = F.max_pool2d(F.relu(F.batch_norm(found, None, None, block.norm.scale, block.norm.shift, True)), 2)
    expected = net.head(found.permute(0, 2, 3, 1).flatten(1)).view(7, 3)
    torch.testing.assert_close(net(classes, queries), expected)
