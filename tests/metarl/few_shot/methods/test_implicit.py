"""iMAML on quadratics, where everything is known exactly, and what it keeps of the inner loop."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from metarl.core.parameters import expand_over_tasks
from metarl.core.rules import GradientDescent
from metarl.few_shot.criteria import REGRESSION
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.methods.implicit import IMAML, conjugate_gradients, flat_rows
from metarl.few_shot.tasks import Examples, FewShotTasks
from tests.metarl.few_shot.further_methods import RULE, make, numbers, rows, smooth, tasks_for
from tests.probes import finite_differences

SIZE, COUNT, STRENGTH = 4, 3, 2.0


def linear_tasks(seed=0):
    """Regression on 4 features with 6 support and 5 query examples, whose inner problem is a quadratic."""
    rng = np.random.default_rng(seed)
    drawn = [torch.from_numpy(rng.normal(size=(COUNT, n, SIZE + 1))) for n in (6, 5)]
    return FewShotTasks(*(Examples(of[:, :, :SIZE], of[:, :, SIZE:]) for of in drawn))


def linear_method(inner_steps=120, cg_iterations=SIZE, size=0.1, damping=0.0):
    torch.manual_seed(0)
    module = torch.nn.Linear(SIZE, 1, bias=False).double()
    rule = GradientDescent(size, inner_steps, extra_step_scale=1.0)
    return IMAML(module, REGRESSION, rule, regularisation=STRENGTH, cg_iterations=cg_iterations, damping=damping)


def solution(theta, support, task):
    """argmin of mean squared error + lambda / 2 |phi - theta|^2, and the Hessian of the error."""
    x, y = support.inputs[task], support.targets[task][:, 0]
    curvature = 2 * x.T @ x / len(x)
    system = curvature + STRENGTH * torch.eye(SIZE, dtype=torch.float64)
    return torch.linalg.solve(system, 2 * x.T @ y / len(x) + STRENGTH * theta), curvature


def test_inner_steps_arrive_at_the_solution_of_the_regularised_problem():
    method, tasks = linear_method(), linear_tasks()
    theta = method.meta_parameters()["weight"][0]
    found = method.states(expand_over_tasks(method.meta_parameters(), COUNT), tasks.support, 120)
    assert len(found) == 121
    for task in range(COUNT):
        torch.testing.assert_close(found[-1]["weight"][task, 0], solution(theta, tasks.support, task)[0])
        slope = (
            2 * tasks.support.inputs[task].T @ (tasks.support.inputs[task] @ theta - tasks.support.targets[task][:, 0])
        )
        torch.testing.assert_close(found[1]["weight"][task, 0], theta - 0.1 * slope / 6)  # at theta the term is 0


def test_its_gradient_is_the_exact_one_on_a_quadratic():
    method, tasks = linear_method(), linear_tasks()
    theta = method.meta_parameters()
    gradients, losses, _ = method.gradient(rows(theta, COUNT), tasks, numbers(method))

    def query_losses(vector):
        found = []
        for task in range(COUNT):
            phi, _ = solution(vector, tasks.support, task)
            found.append((tasks.query.inputs[task] @ phi - tasks.query.targets[task][:, 0]).square().mean())
        return torch.stack(found)

    point = theta["weight"][0]
    torch.testing.assert_close(losses, query_losses(point))
    torch.testing.assert_close(gradients["weight"][:, 0], finite_differences(query_losses, point), rtol=1e-6, atol=1e-8)
    for task in range(COUNT):  # and the formula: (I + H / lambda)^-1 times the query gradient
        phi, curvature = solution(point, tasks.support, task)
        x, y = tasks.query.inputs[task], tasks.query.targets[task][:, 0]
        query = 2 * x.T @ (x @ phi - y) / len(x)
        system = torch.eye(SIZE, dtype=torch.float64) + curvature / STRENGTH
        torch.testing.assert_close(gradients["weight"][task, 0], torch.linalg.solve(system, query))


def test_damping_is_added_to_lambda_in_the_linear_system_alone():
    method, tasks = linear_method(damping=3.0), linear_tasks()
    theta = method.meta_parameters()
    found = method.gradient(rows(theta, COUNT), tasks, numbers(method))[0]["weight"][:, 0]
    for task in range(COUNT):
        phi, curvature = solution(theta["weight"][0], tasks.support, task)
        x, y = tasks.query.inputs[task], tasks.query.targets[task][:, 0]
        system = torch.eye(SIZE, dtype=torch.float64) + curvature / (STRENGTH + 3.0)
        torch.testing.assert_close(found[task], torch.linalg.solve(system, 2 * x.T @ (x @ phi - y) / len(x)))


def test_too_few_products_are_an_approximation():
    tasks = linear_tasks()
    exact, rough = (
        method.gradient(rows(method.meta_parameters(), COUNT), tasks, numbers(method))[0]["weight"]
        for method in (linear_method(), linear_method(cg_iterations=1))
    )
    assert not torch.allclose(exact, rough, rtol=1e-3)


def test_its_gradient_on_a_network_is_that_of_long_unrolled_steps():
    tasks = tasks_for("imaml", make("imaml")[0])
    torch.manual_seed(0)
    rule = GradientDescent(0.05, 250)
    method = IMAML(smooth(), REGRESSION, rule, regularisation=5.0, cg_iterations=40, damping=0.0)
    theta = method.meta_parameters()
    found = method.gradient(rows(theta, 3), tasks, numbers(method))[0]
    own = rows(theta, 3)
    phi = dict(own)
    for _ in range(250):
        loss = method.criterion.loss(method.call(phi, tasks.support.inputs), tasks.support.targets)
        loss = loss + 2.5 * sum((phi[n] - own[n]).square().flatten(1).sum(dim=1) for n in phi)
        slopes = torch.autograd.grad(loss.sum(), list(phi.values()), create_graph=True)
        phi = {name: value - 0.05 * slope for (name, value), slope in zip(phi.items(), slopes, strict=True)}
    query = method.criterion.loss(method.call(phi, tasks.query.inputs), tasks.query.targets)
    expected = torch.autograd.grad(query.sum(), list(own.values()))
    torch.testing.assert_close(flat_rows(found.values()), flat_rows(expected), rtol=1e-5, atol=1e-7)


def kept(kind, inner_steps):
    """Bytes of the tensors that the graph from the query loss back to theta holds on to."""
    method = kind(smooth(), REGRESSION, GradientDescent(0.01, inner_steps))
    tasks, theta = tasks_for("imaml", make("imaml")[0]), rows(method.meta_parameters(), 3)
    alive = weakref.WeakValueDictionary()

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor

    def packed(tensor):
        held = Held(tensor.detach())
        alive[len(alive), id(held)] = held
        return held

    with saved_tensors_hooks(packed, lambda held: held.tensor):
        phi = method.adapt(theta, tasks.support)
        loss = method.criterion.loss(method.call(phi, tasks.query.inputs), tasks.query.targets)
    gc.collect()
    assert loss.requires_grad
    return sum(held.tensor.numel() * held.tensor.element_size() for held in alive.values())


def test_memory_does_not_grow_with_the_number_of_inner_steps():
    assert kept(IMAML, 2) == kept(IMAML, 20) > 0
    assert kept(MAML, 20) > 5 * kept(MAML, 2)


def test_conjugate_gradients_solve_each_task_by_itself():
    torch.manual_seed(0)
    factors, b = torch.randn(3, 5, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    matrices = factors @ factors.mT + torch.eye(5, dtype=torch.float64)
    b[1] = 0  # solved before it begins

    def product(v):
        return (matrices @ v.unsqueeze(2)).squeeze(2)

    torch.testing.assert_close(conjugate_gradients(product, b, 8), torch.linalg.solve(matrices, b))
    by_hand = conjugate_gradients(lambda v: v * torch.tensor([[1.0, 4.0]]), torch.ones(1, 2), 2)
    torch.testing.assert_close(by_hand, torch.tensor([[1.0, 0.25]]))


def test_a_rule_that_leaves_parameters_out_is_refused():
    with pytest.raises(ValueError, match=r"head\.weight"):
        IMAML(smooth(), REGRESSION, GradientDescent(adapted=("hidden*",)))
    with pytest.raises(ValueError, match="multi_step_iterations"):
        IMAML(smooth(), REGRESSION, RULE, 5)
