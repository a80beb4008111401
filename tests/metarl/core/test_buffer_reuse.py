"""Recordings whose results overwrite operands: the same numbers, also of the next call, and inputs as they were."""

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from metarl.core.buffer_reuse import reuse_buffers


def changed(function, *tensors):
    """A recording that reuses buffers, and how many of its operations overwrite something."""
    recorded = make_fx(function)(*tensors)
    recorded.graph.eliminate_dead_code()
    reuse_buffers(recorded, tensors)
    recorded.recompile()
    operations = [node for node in recorded.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return recorded, sum(node.target._schema.is_mutable for node in operations)


def assert_same(function, *tensors, overwriting):
    """The recording gives what the function gives, twice, and leaves its inputs alone."""
    recorded, count = changed(function, *tensors)
    before = [tensor.clone() for tensor in tensors]
    for _ in range(2):
        for found, expected in zip(recorded(*tensors), function(*before), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)  # the type, too
        assert all(map(torch.equal, tensors, before))
    assert count == overwriting


SQUARE = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("function", "overwriting"),
    [
        (lambda x: [(x.exp() + 1).neg()], 2),
        (lambda x: [x + 1], 0),  # an input
        (lambda x: [y := x.exp(), y * 2], 0),  # an output
        (lambda x: [(y := x.exp()).t(), y * 2], 0),  # a view of an output
        (lambda x: [(y := x.exp()).t().exp() + (y * 2)], 1),  # y, once it is needed no more
        (lambda x: [(y := x.exp()) * y], 1),
        (lambda x: [(y := x.exp()) * y.t()], 0),  # a view of what would be overwritten
        (lambda x: [x.sum(0) + x.exp()], 1),  # the larger operand
        (lambda x: [x.exp().t() * 2], 0),  # another layout
        (lambda x: [x.exp()[:2] * 2], 1),  # a part, where the whole is needed no more
        (lambda x: [(y := x.exp())[:2] * 2, y[2:] * 3], 1),  # the last part
        (lambda x: [x.exp()[0].expand(3, 3) * 2], 0),
        (lambda x: [x.exp() + x.exp().double()], 1),  # of the type of the result
        (lambda x: [x.exp() - x.neg()], 1),  # the first operand
        (lambda x: [torch.sub(x, x.exp())], 0),  # the second one: there is no such operation
        (lambda x: [torch.add(x, x.exp(), alpha=2)], 0),
        (lambda x: [torch.where(x > 0, x.exp(), x.neg())], 1),
        (lambda x: [torch.where(x > 0, x, x.neg())], 1),
        (lambda x: [part * 2 for part in x.exp().split(1)], 1),
    ],
)
def test_only_what_nobody_needs_is_overwritten(function, overwriting):
    assert_same(function, SQUARE, overwriting=overwriting)


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
def test_second_derivatives_of_a_network(activation):
    def hessian_product(inputs, first, second, direction):
        weight = first.detach().requires_grad_()
        loss = (activation(inputs @ weight) @ second).square().mean()
        [gradient] = torch.autograd.grad(loss, weight, create_graph=True)
        [product] = torch.autograd.grad((gradient * direction).sum(), weight)
        return [loss.detach(), product]

    tensors = [
        torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((9, 4), (4, 5), (5, 2), (4, 5))
    ]
    recorded, count = changed(hessian_product, *tensors)
    assert count > 4
    assert all(map(torch.equal, recorded(*tensors), hessian_product(*tensors)))


def random_function(seed):
    """Thirty operations on results of earlier ones, views among them; some of all results are returned."""
    rng = np.random.default_rng(seed)
    unary = [torch.exp, torch.tanh, torch.neg, torch.relu, lambda x: x.t(), lambda x: x.flip(0), lambda x: x * 0.5]
    unary += [
        lambda x: x[0].expand(3, 3),
        lambda x: x.expand(3, 3).reshape(-1).view(3, 3),
        lambda x: x.sum(0, keepdim=True),
    ]
    binary = [
        torch.add,
        torch.mul,
        torch.sub,
        lambda x, y: torch.where(x > y, x, y),
        lambda x, y: x.expand(3, 3) @ y.expand(3, 3),
    ]
    plan = []
    for number in range(30):
        kind = unary if rng.random() < 0.5 else binary
        operands = rng.integers(0, number + 2, 2)
        if rng.random() < 0.6:
            operands[0] = number + 1  # the last one
        plan.append((kind[rng.integers(len(kind))], operands[: 1 + (kind is binary)]))
    returned = rng.choice(32, 3, replace=False)

    def function(*tensors):
        found = list(tensors)
        for operation, operands in plan:
            found.append(operation(*(found[index] for index in operands)))
        return [found[index] for index in returned]

    return function


@pytest.mark.parametrize("seed", range(40))
def test_random_operations_give_the_same_numbers(seed):
    function = random_function(seed)
    tensors = [SQUARE, SQUARE.t().contiguous() + 1]
    recorded, _ = changed(function, *tensors)
    before = [tensor.clone() for tensor in tensors]
    for _ in range(2):
        for one, other in zip(recorded(*tensors), function(*before), strict=True):
            assert torch.equal(one.nan_to_num(), other.nan_to_num())
        assert all(map(torch.equal, tensors, before))


def test_the_random_operations_overwrite_something():
    assert sum(changed(random_function(seed), SQUARE, SQUARE + 1)[1] for seed in range(40)) > 40
