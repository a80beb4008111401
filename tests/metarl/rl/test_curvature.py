"""Products with the Hessian of the KL in float64: against the Hessian itself, and from a part of the samples."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from torch.func import functional_call

from metarl.core.jacobian import Jacobian
from metarl.core.parameters import unravel
from metarl.rl.action_distributions import DiagonalGaussian
from metarl.rl.curvature import Curvature
from metarl.rl.objective import MetaObjective, _thin, _thin_episodes
from tests.metarl.rl.problems import NUM_TASKS, PLANE, StepProblem
from tests.probes import tiny_theta


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_products_are_those_of_the_hessian_of_kl(steps):
    problem = StepProblem(steps)
    hessian = torch.autograd.functional.hessian(lambda v: problem.slow_loss_and_kl(v)[1], problem.vector)
    product = problem.objective.kl_products(problem.vector, 1.0, np.random.default_rng(0))
    found = torch.stack([product(v) for v in torch.eye(len(problem.vector), dtype=torch.float64)])
    torch.testing.assert_close(found, hessian, rtol=1e-8, atol=1e-9)


def test_products_agree_with_finite_differences_of_kl():
    problem = StepProblem()

    def gradient(vector):
        leaf = vector.clone().requires_grad_()
        return torch.autograd.grad(problem.slow_loss_and_kl(leaf)[1], leaf)[0]

    product = problem.objective.kl_products(problem.vector, 1.0, np.random.default_rng(0))
    v = torch.randn_like(problem.vector)
    expected = (gradient(problem.vector + 1e-6 * v) - gradient(problem.vector - 1e-6 * v)) / 2e-6
    torch.testing.assert_close(product(v), expected, rtol=1e-5, atol=1e-7)


def test_subsampled_products_keep_the_adapted_parameters_and_estimate_the_hessian():
    problem = StepProblem(step_size=0.05)
    rng = np.random.default_rng(0)
    v = torch.randn_like(problem.vector)
    exact = problem.objective.kl_products(problem.vector, 1.0, rng)(v)
    estimates = torch.stack([problem.objective.kl_products(problem.vector, 0.5, rng)(v) for _ in range(400)])
    error = estimates.std(dim=0) / 20
    assert estimates.std(dim=0).max() > 1e-3
    # weights are renormalised, and J enters twice: a small bias remains, far below the noise of one estimate
    assert ((estimates.mean(dim=0) - exact).abs() < 5 * error + 0.1 * exact.abs().max()).all()
    assert (estimates @ v > 0).all()


def test_subsampled_products_take_curvature_where_all_samples_lead(monkeypatch):
    problem = StepProblem(step_size=0.5)
    seen, path_of = {}, MetaObjective._path

    def noted(self, theta, supports, task_slice, anchors=None):
        path = path_of(self, theta, supports, task_slice, anchors)
        seen[task_slice.start] = {n: v.detach() for n, v in path[-1].items()}
        return path

    monkeypatch.setattr(MetaObjective, "_path", noted)
    problem.objective.kl_products(problem.vector, 0.3, np.random.default_rng(0))
    expected = problem.slow_step(tiny_theta(problem.policy, NUM_TASKS)[1], problem.supports[0])
    for name, value in expected.items():
        torch.testing.assert_close(torch.cat([seen[start][name] for start in sorted(seen)]), value)


@pytest.mark.parametrize("chunk", [1, NUM_TASKS])
@pytest.mark.parametrize("steps", [1, 2])
def test_adapted_parameters_that_are_known_are_taken(steps, chunk):
    problem = StepProblem(steps, chunk=chunk)
    v = torch.randn_like(problem.vector)
    known = problem.objective._adapted_after_each_step(problem.theta, slice(0, NUM_TASKS))[1:]
    elsewhere = [{name: value + 0.1 for name, value in phi.items()} for phi in known]
    for fraction in (1.0, 0.5):
        products = []
        for adapted in (None, known, elsewhere):
            objective = replace(problem.objective, adapted=adapted)
            product = objective.kl_products(problem.vector, fraction, np.random.default_rng(0))
            products.append(product(v))
        torch.testing.assert_close(products[0], products[1], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(products[0], products[2], rtol=1e-3)


def test_first_order_products_are_those_of_the_adapted_policy_alone():
    """As if the adapted parameters moved with theta: J = 1."""
    problem = StepProblem(second_order=False)
    rows = {name: value.expand(NUM_TASKS, *value.shape) for name, value in problem.theta.items()}
    phi = problem.slow_step(rows, problem.supports[0])

    def kl(shift):
        total = torch.zeros((), dtype=torch.float64)
        for task in range(NUM_TASKS):
            own = {name: phi[name][task] + change for name, change in unravel(shift, problem.theta).items()}
            output = functional_call(problem.policy, own, (problem.query.observations[task],))
            divergence = PLANE.kl(problem.query.dist_params[task], output)
            total = total + (problem.query.weights[task] * divergence).sum() / NUM_TASKS
        return total

    hessian = torch.autograd.functional.hessian(kl, torch.zeros_like(problem.vector))
    product = problem.objective.kl_products(problem.vector, 1.0, np.random.default_rng(0))
    found = torch.stack([product(v) for v in torch.eye(len(problem.vector), dtype=torch.float64)])
    torch.testing.assert_close(found, hessian, rtol=1e-8, atol=1e-9)


def test_thinning_draws_without_replacement():
    """Each kept sample once, and each of the N samples equally often."""
    samples = StepProblem().supports[0]
    numbered = replace(samples, advantages=torch.arange(12.0).double().expand(NUM_TASKS, 12))
    drawn = [_thin(numbered, 0.75, np.random.default_rng(seed)).advantages[0].tolist() for seed in range(200)]
    assert all(len(set(kept)) == 9 and kept == sorted(kept) for kept in drawn)
    counts = np.bincount(np.concatenate(drawn).astype(int), minlength=12)
    assert counts.min() > 120  # 150 expected
    assert _thin(samples, 1.0, np.random.default_rng(0)) is samples
    assert _thin(samples, 1e-9, np.random.default_rng(0)).weights.shape == (NUM_TASKS, 1)


def test_thinning_whole_episodes_draws_without_replacement():
    samples = StepProblem().supports[0]
    numbered = replace(samples, advantages=torch.arange(12.0).double().expand(NUM_TASKS, 12), time_steps=2)  # E = 6
    for seed in range(50):
        kept = _thin_episodes(numbered, 0.8, np.random.default_rng(seed)).advantages[0].view(2, -1)
        assert kept.shape == (2, 5)
        assert len(set(kept[0].tolist())) == 5
        assert torch.equal(kept[1], kept[0] + 6)


FAMILY = DiagonalGaussian(gymnasium.spaces.Box(-1, 1, (2,), np.float64))  # P = 4
NUM, SAMPLES, SIZE = 2, 3, 5


def test_a_product_is_that_with_the_dense_matrix_of_each_task():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    theta, inner = draw(NUM, SIZE).requires_grad_(), draw(NUM, SIZE, SIZE)
    phi = torch.tanh(torch.einsum("mij,mj->mi", inner, theta))
    leaf, layer = phi.detach().requires_grad_(), draw(NUM, SAMPLES, 4, SIZE)
    outputs = torch.einsum("mnpi,mi->mnp", layer, leaf)
    weights = torch.rand(NUM, SAMPLES, 1, dtype=torch.float64, generator=generator)
    curvature = Curvature(Jacobian([phi], [theta]), Jacobian([outputs], [leaf]), FAMILY, [outputs.detach()], [weights])

    direction = draw(SIZE)
    [found] = curvature.product({"x": direction})
    for task in range(NUM):
        j = (1 - phi[task].detach().square()).unsqueeze(1) * inner[task]  # d phi / d theta
        dense = torch.zeros(SIZE, SIZE, dtype=torch.float64)
        for sample in range(SAMPLES):
            log_std = outputs[task, sample, 2:].detach()
            fisher = torch.diag(torch.cat([torch.exp(-2 * log_std), torch.full((2,), 2.0, dtype=torch.float64)]))
            dense += weights[task, sample] * layer[task, sample].T @ fisher @ layer[task, sample]
        torch.testing.assert_close(found[task], j.T @ dense @ j @ direction, rtol=1e-10, atol=1e-12)
