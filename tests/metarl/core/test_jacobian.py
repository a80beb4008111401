"""Products with Jacobians in both directions, against dense ones."""

import torch
from torch.func import jacrev

from metarl.core.jacobian import Jacobian, Linearised, Symmetric, weighted_gradient


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


def test_outputs_that_depend_on_nothing_add_nothing():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    fixed, weights = torch.ones(2).double(), [torch.ones(3).double(), torch.ones(2).double()]
    [found] = weighted_gradient([x.square(), fixed], [x], weights)
    torch.testing.assert_close(found, 2 * x.detach())
    [nothing] = weighted_gradient([fixed], [x], weights[1:])
    assert torch.equal(nothing, torch.zeros(3).double())


def test_a_symmetric_matrix_is_its_own_derivative():
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    v = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    [product] = Symmetric.apply(lambda vectors: [a @ vectors[0]], v)
    torch.testing.assert_close(product, a @ v.detach())
    u = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    [back] = torch.autograd.grad(product, v, u, create_graph=True)
    torch.testing.assert_close(back, a @ u.detach())
    torch.testing.assert_close(torch.autograd.grad(back[0], u)[0], a[0])  # and so on, as often as one likes


def test_linearised_values_have_the_derivative_that_was_given():
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    x, values = torch.zeros(2, dtype=torch.float64, requires_grad=True), [torch.tensor([7.0, 8.0]).double()]
    [found] = Linearised.apply(lambda vectors: [a @ vectors[0]], values, x)
    assert torch.equal(found, values[0])
    assert torch.autograd.grad(found[1], x)[0].tolist() == [1, 3]
