"""Parameters as data: one batched call, flat vectors, and what of a module is not learned."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metarl.core.parameters import (
    call_per_task,
    constants_of,
    expand_over_tasks,
    parameters_of,
    ravel,
    restore_constants,
    unravel,
)


def test_batched_over_tasks_equals_one_task_at_a_time():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    phi = {name: torch.randn(4, *value.shape, dtype=torch.float64) for name, value in net.named_parameters()}
    inputs = torch.randn(4, 6, 3, dtype=torch.float64)
    found = call_per_task(net, phi, inputs)
    for task in range(4):
        own = {name: value[task] for name, value in phi.items()}
        torch.testing.assert_close(found[task], functional_call(net, own, (inputs[task],)))


def test_the_module_sees_one_batch_axis_so_any_module_will_do():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    phi = expand_over_tasks(parameters_of(net), 4)
    images = torch.randn(4, 5, 1, 4, 4)
    expected = net(images.view(20, 1, 4, 4)).view(4, 5, 3)
    torch.testing.assert_close(call_per_task(net, phi, images), expected)


class Twice(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, inputs):
        return self.second(self.first(inputs))


def test_a_part_that_is_there_twice_is_refused_and_shared_parameters_are_not():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^Twice holds the same Linear as 'first' and as 'second'"):
        parameters_of(Twice(one, one))
    other.weight = one.weight
    tied, inputs = Twice(one, other), torch.randn(3, 4, 2)
    found = call_per_task(tied, expand_over_tasks(parameters_of(tied), 3), inputs)
    torch.testing.assert_close(found, tied(inputs))
    torch.save(tied.state_dict(), "/dev/null")  # its tensors are still its own
    relu = nn.ReLU()
    assert set(parameters_of(Twice(nn.Sequential(one, relu), relu))) == {"first.0.weight", "first.0.bias"}


def test_ravel_and_unravel_are_inverse():
    theta = parameters_of(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)))
    vector = ravel(list(theta.values()))
    assert vector.shape == (32,)
    back = unravel(vector, theta)
    assert all(torch.equal(back[name], value) for name, value in theta.items())
    assert torch.equal(ravel(list(back.values())), vector)


def test_parameters_of_are_a_copy():
    net = nn.Linear(2, 2)
    theta = parameters_of(net)
    theta["weight"].zero_()
    assert net.weight.abs().sum() > 0
    assert not theta["weight"].requires_grad


def frozen_first(seed):
    """A module with a frozen layer, a buffer, and something to learn."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1))
    net[0].requires_grad_(False)
    net[1].running_mean.normal_()
    return net


def test_frozen_parameters_are_not_learned():
    net = frozen_first(0)
    assert set(parameters_of(net)) == {"2.weight", "2.bias"}
    with pytest.raises(ValueError, match=r"^Linear has no parameter"):
        parameters_of(net[0])


def test_constants_go_from_one_module_to_another():
    one, other = frozen_first(0), frozen_first(1)
    constants = constants_of(one)
    assert set(constants) == {
        *(f"0.{name}" for name in ("weight", "bias")),
        *(f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")),
    }
    kept = other[2].weight.clone()
    restore_constants(other, None)  # a file of before
    assert not torch.equal(other[0].weight, one[0].weight)
    restore_constants(other, constants)
    assert all(torch.equal(constants_of(other)[name], value) for name, value in constants.items())
    assert torch.equal(other[2].weight, kept)
    with pytest.raises(ValueError, match=r"buffers and frozen parameters \{\}.*'0.weight': \(3, 2\)"):
        restore_constants(other, {})
