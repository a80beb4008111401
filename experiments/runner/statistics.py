"""Statistics over seeds (Agarwal et al. 2021): interquartile means, bootstrap intervals, probability of improvement.

Resampling is `scipy.stats.bootstrap` (percentile method), which the extra `statistics` installs. The library of the
paper's authors, rliable, is not used: its version 1.2.0 of 2024 needs arch below 8, which fails to import beside pandas
3, and brings pandas, statsmodels and seaborn.

Scores of a row are an array (S, M): M test tasks of each of S seeds, which are training runs. The same policy plays the
tasks of a seed, so their scores are dependent, and resampling must keep a seed's tasks together. The convention of the
paper, to draw seeds anew for each task, is for tasks that were trained on separately.
"""

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 10_000
FEWEST = 3  # seeds of which there is an interval
FEWEST_TO_RANK = 5  # of each row, of an interval of which of two is better: three that all win resample to certainty
_BATCH = 500  # resamples at a time

Interval = tuple[float, float]


def iqm(scores: np.ndarray) -> float:
    """The interquartile mean: the mean of the middle half of all scores, of any shape.

    A quarter of the scores, rounded down to a whole number, is left out at each end.
    """
    from scipy.stats import trim_mean

    return float(trim_mean(scores, 0.25, axis=None))


def iqm_interval(strata: Sequence[np.ndarray]) -> Interval | None:
    """The stratified 95 % bootstrap interval of the interquartile mean of all scores; None below three seeds.

    Within each stratum seeds are drawn with replacement, as many as there are, each with all of its scores. Strata are
    drawn independently of each other. One stratum holds what was trained together: the scores of a row.

    Args:
        strata: scores (S, M) of each; S and M may differ.
    """
    from scipy.stats import trim_mean

    def statistic(*drawn: np.ndarray, axis: int) -> np.ndarray:
        """Of indices of seeds (..., S) for each stratum, along the last axis."""
        parts = [scores[seeds.astype(int)] for scores, seeds in zip(strata, drawn, strict=True)]  # (..., S, M)
        pooled = np.concatenate([part.reshape(*part.shape[:-2], -1) for part in parts], axis=-1)
        return trim_mean(pooled, 0.25, axis=-1)

    return _interval(statistic, [np.arange(len(scores)) for scores in strata])


def mean_interval(values: np.ndarray) -> Interval | None:
    """The 95 % bootstrap interval of the mean of values (S,), one per seed; None below three seeds."""
    return _interval(lambda drawn, axis: drawn.mean(axis=axis), [values])


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """P(X > Y) + P(X = Y) / 2 for X a run of ours and Y one of theirs: the Mann-Whitney statistic U / (S S').

    Args:
        ours: a score per run, (S,), of which larger ones are better.
        theirs: (S',).
    """
    return float(_share_better(ours, theirs))


def improvement_interval(ours: np.ndarray, theirs: np.ndarray) -> Interval | None:
    """The 95 % bootstrap interval of the probability of improvement, stratified by row; None below five seeds each."""
    if min(len(ours), len(theirs)) < FEWEST_TO_RANK:
        return None
    return _interval(lambda one, other, axis: _share_better(one, other), [ours, theirs])


def _share_better(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The probability of improvement of scores (..., S) and (..., S')."""
    one, other = ours[..., :, None], theirs[..., None, :]
    return ((one > other) + 0.5 * (one == other)).mean(axis=(-2, -1))


def _interval(statistic: Callable[..., np.ndarray], samples: Sequence[np.ndarray]) -> Interval | None:
    """The ends of the percentile interval of a statistic of samples that are resampled independently of each other."""
    if min(len(sample) for sample in samples) < FEWEST:
        return None
    from scipy.stats import bootstrap

    with np.errstate(invalid="ignore"):  # of scores that are infinite
        found = bootstrap(
            samples,
            statistic,
            n_resamples=RESAMPLES,
            batch=_BATCH,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
