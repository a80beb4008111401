"""Random quadratics as tasks."""

import pytest
import torch

from metarl.core.randomness import keyed_generator
from metarl.few_shot.quadratics import QUADRATIC, Quadratics


def test_the_loss_of_a_linear_module_is_the_quadratic():
    tasks = Quadratics(4).sample(3, "train", keyed_generator(0, "a"))
    assert torch.equal(tasks.support.inputs, tasks.query.inputs)
    x = torch.randn(4)
    for task in range(3):
        w, y = tasks.support.inputs[task], tasks.support.targets[task, :, 0]
        expected = (w @ x - y).square().sum()
        outputs = (w @ x).view(1, 4, 1)
        torch.testing.assert_close(QUADRATIC.loss(outputs, tasks.support.targets[task : task + 1])[0], expected)
        torch.testing.assert_close(QUADRATIC.metric(outputs, tasks.support.targets[task : task + 1])[0], expected / 4)


def test_elements_are_standard_normal():
    tasks = Quadratics(10).sample(300, "test", keyed_generator(0, "a"))
    for values in tasks.support.tensors:
        assert abs(values.mean()) < 0.05
        assert abs(values.std() - 1) < 0.05


def test_a_size_of_0_is_refused():
    with pytest.raises(ValueError, match="size"):
        Quadratics(0)
