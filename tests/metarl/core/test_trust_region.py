"""The solver and the trust-region step where linear algebra knows the answer."""

import math

import pytest
import torch

from metarl.core.trust_region import TrustRegion, conjugate_gradient


def positive_definite(n, seed=0):
    root = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T + torch.eye(n, dtype=torch.float64)


def test_the_defaults_are_those_of_the_paper_s_code():
    region = TrustRegion()
    assert (region.damping, region.iterations, region.backtrack, region.attempts) == (1e-5, 10, 0.8, 15)


def test_two_steps_solve_a_two_by_two_system():
    a = torch.tensor([1.0, 4.0])
    x, residual = conjugate_gradient(lambda v: a * v, torch.ones(2), iterations=2)
    torch.testing.assert_close(x, torch.tensor([1.0, 0.25]))
    torch.testing.assert_close(residual, torch.zeros(2), rtol=0, atol=1e-6)


def test_equals_a_dense_solver():
    a, b = positive_definite(12), torch.randn(12, dtype=torch.float64)
    x, _ = conjugate_gradient(lambda v: a @ v, b, iterations=30, tolerance=1e-24)
    torch.testing.assert_close(x, torch.linalg.solve(a, b), rtol=1e-8, atol=1e-8)


def test_the_residual_is_what_it_says_after_any_number_of_steps():
    a, b = positive_definite(12), torch.randn(12, dtype=torch.float64)
    for iterations in (0, 1, 5):
        x, residual = conjugate_gradient(lambda v: a @ v, b, iterations)
        torch.testing.assert_close(residual, b - a @ x)


def test_stops_at_the_first_residual_below_the_tolerance():
    a, b = positive_definite(12), torch.randn(12, dtype=torch.float64)
    squares = [conjugate_gradient(lambda v: a @ v, b, n)[1].square().sum() for n in range(10)]
    tolerance = 0.01 * float(squares[0])
    last = next(n for n, square in enumerate(squares) if square <= tolerance)
    assert 1 < last < 9
    x, residual = conjugate_gradient(lambda v: a @ v, b, 20, tolerance)
    assert torch.equal(x, conjugate_gradient(lambda v: a @ v, b, last)[0])
    assert residual.square().sum() == squares[last]


def test_stays_put_once_converged_and_leaves_its_input_alone():
    a, b = positive_definite(3), torch.randn(3, dtype=torch.float64)
    original = b.clone()
    x, _ = conjugate_gradient(lambda v: a @ v, b, iterations=200)
    assert torch.isfinite(x).all()
    assert torch.equal(b, original)
    zero, _ = conjugate_gradient(lambda v: a @ v, torch.zeros(3, dtype=torch.float64))
    assert (zero == 0).all()


def quadratic_problem(n=5, scale=1.0):
    """Linear loss g.x with the constraint x'Ax / 2: the trust-region step has a closed form."""
    a = positive_definite(n)
    g = scale * torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def evaluate(x):
        return g @ x, 0.5 * x @ a @ x

    return a, g, evaluate


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_step_has_the_closed_form_on_a_quadratic(damping):
    a, g, evaluate = quadratic_problem()
    start = torch.zeros(5, dtype=torch.float64)
    region = TrustRegion(bound=0.02, damping=damping, iterations=20)
    new, outcome = region.step(start, g @ start, g, lambda v: a @ v, evaluate)
    natural = torch.linalg.solve(a + damping * torch.eye(5, dtype=torch.float64), g)
    length = math.sqrt(2 * 0.02 / (natural @ a @ natural))
    assert (outcome.status, outcome.line_search_steps) == ("accepted", 1)
    torch.testing.assert_close(new, -math.sqrt(region.aim) * length * natural)
    assert outcome.constraint == pytest.approx(0.02 * region.aim)
    assert outcome.loss_after == pytest.approx((g @ new).item())
    assert outcome.gradient_norm == pytest.approx(g.norm().item())


def test_the_step_does_not_depend_on_the_scale_of_the_loss():
    steps = []
    for scale in (1.0, 100.0):
        a, g, evaluate = quadratic_problem(scale=scale)
        start = torch.zeros(5, dtype=torch.float64)
        region = TrustRegion(damping=0.0, iterations=20)
        steps.append(region.step(start, g @ start, g, lambda v, a=a: a @ v, evaluate)[0])
    torch.testing.assert_close(*steps)


@pytest.mark.parametrize("factor", [0.1, 4.0])
def test_the_length_is_that_of_the_true_constraint(factor):
    """Products that are too small or too large by a factor give the same step."""
    a, g, evaluate = quadratic_problem()
    start = torch.zeros(5, dtype=torch.float64)
    region = TrustRegion(damping=0.0, iterations=20)
    expected, _ = region.step(start, g @ start, g, lambda v: a @ v, evaluate)
    new, outcome = region.step(start, g @ start, g, lambda v: factor * a @ v, evaluate)
    assert (outcome.status, outcome.line_search_steps) == ("accepted", 1)
    torch.testing.assert_close(new, expected)


def test_what_the_curvature_does_not_know_does_not_rule_the_step():
    """Products from a part of the samples miss directions in which the gradient is little more than noise."""
    known = torch.tensor([1.0, 4.0, 0.0, 0.0], dtype=torch.float64)
    g = torch.tensor([1.0, 2.0, 0.003, -0.002], dtype=torch.float64)
    start = torch.zeros(4, dtype=torch.float64)

    def evaluate(x):
        return g @ x, 0.5 * x @ x

    new, outcome = TrustRegion().step(start, g @ start, g, lambda v: known * v, evaluate)
    natural = torch.tensor([1.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    assert (outcome.status, outcome.line_search_steps) == ("accepted", 1)
    assert torch.cosine_similarity(new, -natural, dim=0) > 0.9999


def test_a_constraint_that_is_far_too_small_lengthens_the_step_no_more_than_backtracking_can_undo():
    a, g, evaluate = quadratic_problem()
    start = torch.zeros(5, dtype=torch.float64)
    calls = []

    def misled(x):
        calls.append(x)
        loss, constraint = evaluate(x)
        return loss, constraint * (1e-12 if len(calls) == 1 else 1)

    _, outcome = TrustRegion(damping=0.0, iterations=20).step(start, g @ start, g, lambda v: a @ v, misled)
    assert outcome.status == "accepted"
    torch.testing.assert_close(calls[1], 10 * calls[0])


def test_products_that_are_not_finite_end_the_run():
    _, g, evaluate = quadratic_problem()
    start = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(ArithmeticError, match="product with the Hessian"):
        TrustRegion().step(start, g @ start, g, lambda v: v * math.nan, evaluate)


def test_shortens_until_the_constraint_holds():
    a, g, _ = quadratic_problem()
    start = torch.zeros(5, dtype=torch.float64)
    measured = []

    def evaluate(x):
        measured.append(x @ a @ x / 2)
        return g @ x, measured[-1] if len(measured) == 1 else 4 * measured[-1]  # the first is four times too small

    region = TrustRegion(damping=0.0, iterations=20)
    new, outcome = region.step(start, g @ start, g, lambda v: a @ v, evaluate)
    assert outcome.status == "accepted"
    assert outcome.line_search_steps == 4  # 0.8^3 is the first power whose square is below 1 / (4 aim)
    assert outcome.constraint == pytest.approx(4 * 0.8**6 * region.aim * 0.01)
    assert not torch.equal(new, start)


@pytest.mark.parametrize(("first", "lengths"), [(1.0, 1), (1.05, 2)])
def test_a_first_candidate_just_beyond_the_bound_is_shortened(first, lengths):
    a, g, _ = quadratic_problem()
    start = torch.zeros(5, dtype=torch.float64)
    constraints = [0.01, first * 0.01, 0.9 * 0.01]  # of the model's length, and of two candidates

    def evaluate(x):
        return g @ x, torch.tensor(constraints.pop(0), dtype=torch.float64)

    _, outcome = TrustRegion(bound=0.01).step(start, g @ start, g, lambda v: a @ v, evaluate)
    assert (outcome.status, outcome.line_search_steps) == ("accepted", lengths)
    assert outcome.constraint <= 0.01


@pytest.mark.parametrize("constraint", [0.0, float("nan"), float("inf")])
def test_a_constraint_that_gives_no_length_leaves_that_of_the_model(constraint):
    a, g, _ = quadratic_problem()
    start = torch.zeros(5, dtype=torch.float64)
    constraints = [constraint, 0.001]

    def evaluate(x):
        return g @ x, torch.tensor(constraints.pop(0), dtype=torch.float64)

    new, outcome = TrustRegion(damping=0.0, iterations=20).step(start, g @ start, g, lambda v: a @ v, evaluate)
    assert outcome.status == "accepted"
    assert (new @ a @ new / 2).item() == pytest.approx(0.01)


def test_a_constraint_that_is_never_a_number_ends_the_run():
    a, g, _ = quadratic_problem()
    start, nothing = torch.zeros(5, dtype=torch.float64), torch.tensor(math.nan)
    with pytest.raises(ArithmeticError, match="constraint is not a number"):
        TrustRegion().step(start, g @ start, g, lambda v: a @ v, lambda x: (g @ x, nothing))


@pytest.mark.parametrize("after", [1.0, float("nan"), 0.0])
def test_a_step_that_does_not_improve_is_rejected_whole(after):
    a, g, _ = quadratic_problem()
    start = torch.ones(5, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    new, outcome = TrustRegion().step(start, zero, g, lambda v: a @ v, lambda x: (zero + after, zero))
    assert outcome.status == "rejected"
    assert new is start
    assert (outcome.line_search_steps, outcome.constraint, outcome.loss_after) == (15, 0.0, 0.0)


def test_equality_with_the_bound_is_accepted_and_with_the_loss_is_not():
    a, g, _ = quadratic_problem()
    start = torch.zeros(5, dtype=torch.float64)
    at_bound = torch.tensor(0.01, dtype=torch.float64)
    below = torch.tensor(-1.0, dtype=torch.float64)
    _, outcome = TrustRegion().step(start, g @ start, g, lambda v: a @ v, lambda x: (below, at_bound))
    assert outcome.status == "accepted"


def test_no_gradient_no_step():
    a, g, evaluate = quadratic_problem()
    start = torch.ones(5, dtype=torch.float64)
    new, outcome = TrustRegion().step(start, g @ start, 0 * g, lambda v: a @ v, evaluate)
    assert (outcome.status, new is start) == ("stationary", True)


def test_the_number_of_threads_does_not_show():
    """MKL divides the float32 products of vectors this long between threads, which rounds them otherwise."""
    generator = torch.Generator().manual_seed(0)
    diagonal, b = (torch.rand(20_000, generator=generator) + 0.5 for _ in range(2))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            x, _ = conjugate_gradient(lambda v: diagonal * v, b)
            found.append(x)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
