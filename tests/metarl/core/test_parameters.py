"""Parameters as data, and products with Jacobians."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from metarl.core.jacobian import Jacobian
from metarl.core.parameters import (
    call_per_task,
    constants_of,
    expand_over_tasks,
    parameters_of,
    ravel,
    restore_constants,
    unravel,
)
from metarl.rl.policies import CategoricalMLP, GaussianMLP
from tests.probes import CorridorTasks


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
    with pytest.raises(ValueError, match=r"^Twice holds the same Linear as 'first' and as 'second'; allowed: once"):
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
    with pytest.raises(ValueError, match="Linear has no parameter that requires a gradient; allowed: at least one"):
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
    with pytest.raises(
        ValueError, match=r"holds the buffers and frozen parameters \{\}; allowed: \{'0.weight': \(3, 2\)"
    ):
        restore_constants(other, {})


def test_jacobian_products_both_ways():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, dtype=torch.float64, requires_grad=True)
    unused = torch.randn(1, dtype=torch.float64, requires_grad=True)

    def function(x, y):
        return torch.cat([x.sin() * y[0], (x * x).sum().view(1) * y[1]])

    dense_x, dense_y = jacrev(function, argnums=(0, 1))(x, y)
    jacobian = Jacobian([function(x, y)], [x, y, unused])
    v, w, u = torch.randn(3).double(), torch.randn(2).double(), torch.randn(4).double()
    for _ in range(2):  # the graphs stay usable
        [product] = jacobian.product([v, w, torch.ones(1).double()])
        torch.testing.assert_close(product, dense_x @ v + dense_y @ w)
        back = jacobian.transposed_product([u])
        torch.testing.assert_close(back[0], dense_x.T @ u)
        torch.testing.assert_close(back[1], dense_y.T @ u)
        assert back[2].tolist() == [0]


def test_gaussian_policy_starts_as_the_paper_has_it():
    space = CorridorTasks.observation_space
    policy = GaussianMLP(space, space, hidden_sizes=(50, 40), initial_std=0.5)
    output = policy(torch.zeros(3, 2))
    torch.testing.assert_close(output, torch.tensor([[0.0, 0.0, -0.6931472, -0.6931472]] * 3))
    weight = policy.mean[2].weight
    assert weight.shape == (40, 50)
    bound = (6 / 90) ** 0.5  # Xavier-uniform
    assert 0.9 * bound < weight.abs().max() <= bound


def test_minimum_standard_deviation():
    space = CorridorTasks.observation_space
    policy = GaussianMLP(space, space, minimum_std=0.1)
    with torch.no_grad():
        policy.log_std.fill_(-50)
    assert policy(torch.zeros(1, 2))[0, 2:].exp().tolist() == pytest.approx([0.1, 0.1])


def test_categorical_policy_gives_one_logit_per_action():
    policy = CategoricalMLP(CorridorTasks.observation_space, CorridorTasks.action_space, (8,))
    observations = torch.randn(5, 2)
    expected = policy.logits[2](torch.relu(policy.logits[0](observations)))
    assert torch.equal(policy(observations), expected)


def test_misfitting_spaces_and_activations_are_refused():
    tasks = CorridorTasks()
    with pytest.raises(ValueError, match=r"Discrete\(3\) does not fit this policy; allowed: Box"):
        GaussianMLP(tasks.observation_space, tasks.action_space)
    with pytest.raises(ValueError, match="'gelu'; allowed: relu, tanh"):
        CategoricalMLP(tasks.observation_space, tasks.action_space, activation="gelu")
