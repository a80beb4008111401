"""The few-shot networks: shapes, and one batched call for tasks with their own weights."""

import pytest
import torch
import torch.nn.functional as F

from metarl.core.parameters import call_per_task, expand_over_tasks, parameters_of
from metarl.few_shot.networks import MLP, ConvNet, averaged


def networks():
    return [
        (ConvNet((28, 28, 1), 5, 64), (28, 28, 1)),
        (ConvNet((84, 84, 3), 5, 32, strided=False), (84, 84, 3)),
        (MLP((784, 256, 128, 64, 64, 5), normalised=True), (28, 28, 1)),
        (MLP((1, 40, 40, 1)), (1,)),
    ]


@pytest.mark.parametrize("which", range(4))
def test_networks_have_the_papers_shapes(which):
    network, size = networks()[which]
    inputs = torch.rand(2, 3, *size)
    outputs = call_per_task(network, expand_over_tasks(parameters_of(network), 2), inputs)
    assert outputs.shape == (2, 3, 1 if size == (1,) else 5)
    for task in range(2):
        torch.testing.assert_close(outputs[task], network(inputs[task]), rtol=1e-4, atol=1e-4)


def test_the_pooled_network_joins_800_numbers():
    network = ConvNet((84, 84, 3), 5, 32, strided=False)
    assert network.features(torch.rand(2, 84, 84, 3)).shape == (2, 800)
    assert ConvNet((28, 28, 1), 5).features(torch.rand(2, 28, 28, 1)).shape == (2, 64)


@pytest.mark.parametrize(("size", "pixels"), [((28, 28, 1), 20), ((6, 9, 3), 4), ((4, 4, 2), 4), ((2, 3, 1), 5)])
def test_averaged_is_adaptive_average_pooling(size, pixels):
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    found = averaged(images, pixels)
    for task in range(2):
        expected = F.adaptive_avg_pool2d(images[task].permute(0, 3, 1, 2), pixels).flatten(1)
        torch.testing.assert_close(found[task], expected)
