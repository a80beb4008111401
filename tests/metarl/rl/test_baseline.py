"""Baselines: features by hand, fits that are exact, and what would explain noise."""

import numpy as np
import pytest
import torch

from metarl.rl.baseline import baseline_features, fit_linear_baseline, require_baseline


def test_baseline_features_by_hand():
    found = baseline_features(torch.tensor([[20.0, -3.0]]), torch.tensor([50]))
    np.testing.assert_allclose(found.numpy(), [[10, -3, 100, 9, 0.5, 0.25, 0.125, 1]])
    quadratic = baseline_features(torch.tensor([[20.0, -3.0, 2.0]]), torch.tensor([50]), "quadratic")
    np.testing.assert_allclose(quadratic.numpy(), [[10, -3, 2, 100, -30, 20, 9, -6, 4, 0.5, 0.25, 0.125, 1]])


def test_ridge_rises_where_the_normal_equations_cannot_be_solved():
    features = torch.zeros(2, 4, 3, dtype=torch.float64)
    features[0] = torch.tensor([[1e6, 1e6, 1.0]] * 4)  # singular beyond the first ridge's help
    features[1] = torch.eye(4, dtype=torch.float64)[:, :3]
    targets = torch.tensor([[2e6] * 4, [1.0, 2.0, 3.0, 0.0]], dtype=torch.float64)
    found = fit_linear_baseline(features, targets, torch.ones(2, 4, dtype=torch.bool))
    torch.testing.assert_close(found[1], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), rtol=1e-4, atol=0)
    torch.testing.assert_close(features[0] @ found[0], targets[0], rtol=1e-3, atol=0)


def test_the_ridge_rises_five_times():
    features = torch.full((1, 1, 2), 4e15**0.5, dtype=torch.float64)  # singular in float64 below a ridge of 1
    found = fit_linear_baseline(features, features[..., 0], torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(found.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-3, atol=0)


def test_a_hopeless_fit_names_the_task():
    features = torch.ones(2, 4, 2, dtype=torch.float64)
    features[1, 0, 0] = np.nan
    with pytest.raises(ArithmeticError, match="task 1"):
        fit_linear_baseline(features, torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool))


def test_a_picture_has_the_features_of_its_numbers_unless_there_are_too_many():
    observations, steps = torch.randn(2, 3, 4, 5, 2), torch.arange(6).view(2, 3)
    flat = baseline_features(observations.flatten(2), steps)
    assert torch.equal(baseline_features(observations, steps), flat)
    assert flat.shape == (2, 3, 2 * 40 + 4)
    large = baseline_features(torch.randn(2, 3, 19, 27), steps)  # 513 numbers
    assert torch.equal(large, flat[..., -4:])


def test_a_fit_is_the_solution_of_the_normal_equations():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 9, 3, dtype=torch.float64, generator=generator)
    targets = torch.randn(2, 9, dtype=torch.float64, generator=generator)
    valid = torch.rand(2, 9, generator=generator) < 0.7
    found = fit_linear_baseline(features, targets, valid, ridge=0.1)
    for task in range(2):
        x, y = features[task][valid[task]], targets[task][valid[task]]
        expected = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(3, dtype=torch.float64), x.T @ y)
        torch.testing.assert_close(found[task], expected)


@pytest.mark.parametrize(
    ("baseline", "numbers", "samples"), [("linear", 10_000, 1), ("quadratic", 2, 18), ("quadratic", 40, 2000)]
)
def test_baselines_that_suit_pass(baseline, numbers, samples):
    assert require_baseline(baseline, numbers, samples) is None


@pytest.mark.parametrize(
    ("baseline", "numbers", "samples", "named"),
    [
        ("cubic", 2, 1000, "linear, quadratic"),
        ("quadratic", 41, 100_000, "41 numbers"),
        ("quadratic", 2, 17, "9 features and 17 samples"),
    ],
)
def test_baselines_that_do_not_are_refused(baseline, numbers, samples, named):
    with pytest.raises(ValueError, match=rf"^baseline = '{baseline}'.*{named}"):
        require_baseline(baseline, numbers, samples)
