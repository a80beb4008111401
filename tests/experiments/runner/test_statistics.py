"""Statistics over seeds against values computed by hand, and against all resamples where these are few."""

import itertools

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the extra 'statistics'")

from metarl.experiments.runner import statistics
from metarl.experiments.runner.statistics import (
    improvement_interval,
    iqm,
    iqm_interval,
    mean_interval,
    probability_of_improvement,
)


def test_iqm_is_the_mean_of_the_middle_half():
    assert iqm(np.array([100.0, 3.0, 4.0, 1.0, 5.0, 6.0, -50.0, 7.0])) == 4.5  # of 3, 4, 5, 6
    assert iqm(np.array([[1.0, 2.0], [3.0, 40.0]])) == 2.5
    assert iqm(np.array([1.0, 2.0, 6.0])) == 3.0  # a quarter of three is none


def quantiles_of_all_resamples(strata):
    """By the definition: every choice of seeds of every stratum has the same probability."""
    choices = [itertools.product(range(len(scores)), repeat=len(scores)) for scores in strata]
    drawn = [
        iqm(np.concatenate([scores[list(seeds)].ravel() for scores, seeds in zip(strata, of, strict=True)]))
        for of in itertools.product(*choices)
    ]
    return np.quantile(drawn, [0.025, 0.975])


def test_the_interval_is_between_the_quantiles_of_all_resamples():
    scores = np.array([[1.0, 2.0, 7.0], [4.0, 3.0, 9.0], [0.0, 11.0, 5.0], [8.0, 6.0, 10.0]])
    assert iqm_interval([scores]) == pytest.approx(quantiles_of_all_resamples([scores]), abs=0.15)
    strata = [scores[:3], 2 * scores[1:, :2]]
    assert iqm_interval(strata) == pytest.approx(quantiles_of_all_resamples(strata), abs=0.25)


def test_seeds_are_drawn_with_all_of_their_tasks():
    """Seeds that differ by a constant: tasks drawn by themselves would hide how much."""
    seeds, tasks = np.array([0.0, 10.0, 20.0]), np.linspace(-1, 1, 40)
    scores = seeds[:, None] + tasks
    low, high = iqm_interval([scores])
    assert low < 3.5
    assert high > 16.5
    apart = iqm_interval([column[:, None] for column in scores.T])
    assert apart[1] - apart[0] < 0.5 * (high - low)


def test_the_interval_covers_the_truth_and_that_with_tasks_apart_does_not(monkeypatch):
    """Ten seeds of 20 tasks; policies differ as much as tasks do; the truth is 0."""
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    covered, apart = 0, 0
    for _ in range(40):
        scores = rng.standard_normal((10, 1)) + rng.standard_normal((10, 20))
        low, high = iqm_interval([scores])
        covered += low < 0 < high
        low, high = iqm_interval([column[:, None] for column in scores.T])
        apart += low < 0 < high
    assert covered >= 0.8 * 40
    assert apart <= 0.6 * 40


def test_few_seeds_have_no_interval():
    assert iqm_interval([np.ones((2, 40))]) is None
    assert mean_interval(np.ones(2)) is None
    assert improvement_interval(np.ones(5), np.ones(4)) is None


def test_mean_interval():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]
    assert mean_interval(values) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.1)


def test_probability_of_improvement_counts_pairs():
    ours, theirs = np.array([3.0, 5.0, 1.0]), np.array([2.0, 3.0])
    assert probability_of_improvement(ours, theirs) == pytest.approx(3.5 / 6)  # 3 > 2, 3 = 3, 5 > 2, 5 > 3
    assert probability_of_improvement(theirs, ours) == pytest.approx(2.5 / 6)
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 6, 7).astype(float), rng.integers(0, 6, 5).astype(float)
    assert probability_of_improvement(ours, theirs) == pytest.approx(mannwhitneyu(ours, theirs).statistic / 35)


def test_the_interval_of_the_probability_of_improvement():
    assert improvement_interval(np.arange(5.0) + 10, np.arange(5.0)) == (1.0, 1.0)
    ours, theirs = np.array([1.0, 4.0, 6.0, 7.0, 9.0]), np.array([2.0, 3.0, 5.0, 8.0, 8.5])
    counts = [np.bincount(drawn, minlength=5) for drawn in itertools.product(range(5), repeat=5)]  # of each seed
    drawn = np.array(counts) @ (ours[:, None] > theirs) @ np.array(counts).T / 25  # of all pairs of resamples
    assert improvement_interval(ours, theirs) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "together", "apart"), [(3, 0.74, 0.38), (5, 0.88, 0.49), (10, 0.92, 0.48)])
def test_how_often_intervals_cover_the_truth(seeds, together, apart, monkeypatch):
    """The figures that docs/results.md names: policies differ as much as 20 tasks do; 400 experiments."""
    monkeypatch.setattr(statistics, "RESAMPLES", 600)
    rng = np.random.default_rng(1)
    covered = np.zeros(2)
    for _ in range(400):
        scores = rng.standard_normal((seeds, 1)) + rng.standard_normal((seeds, 20))
        intervals = iqm_interval([scores]), iqm_interval([column[:, None] for column in scores.T])
        covered += [low < 0 < high for low, high in intervals]
    assert covered / 400 == pytest.approx([together, apart], abs=0.07)
