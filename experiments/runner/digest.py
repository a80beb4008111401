"""The digest of all results, `summary.json`: of each row the means over seeds, without tasks and curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarl.experiments.runner.results import is_metric, task_values

RESAMPLES = 10_000  # of a bootstrap
INTERVAL = 1.96  # standard errors in half of a 95 % interval
DIVERGED = 1e3  # a squared error that a task does not come back from
_ITERATE = ("iterations", "env_steps", "shots", "evaluation_tasks")


def digest(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Summarise all rows, by experiment and name.

    Of each metric, such as `return/step_1`, an entry has `mean`, `standard_error` (over seeds; None of a single one),
    `per_seed` and `standard_error_over_tasks` (of each seed). Returns also have `bootstrap_95`, a 95 % bootstrap
    interval of the mean over seeds (None of fewer than three); other metrics have `interval_95` (half of it, over
    tasks, mean over seeds), `median` and `diverged_tasks`. Metrics of the best iterate begin with `best/`.
    """
    return {of: {name: summarise(row) for name, row in named.items()} for of, named in rows.items()}


def summarise(row: Mapping[str, Any]) -> dict[str, Any]:
    """The digest of one row."""
    seeds = row["seeds"]
    entry: dict[str, Any] = {
        "seeds": [seed["seed"] for seed in seeds],
        **({"dynamics": row["dynamics"]} if "dynamics" in row else {}),
        "seconds": [seed["seconds"] for seed in seeds],
        "machine": common([seed["machine"] for seed in seeds]),
        "commit": common([commits(seed) for seed in seeds]),
        "command": row["command"],
    }
    for part, prefix in (("last", ""), ("best", "best/")):
        kept = [seed[part] for seed in seeds if part in seed]
        for name, value in (kept[0] if kept else {}).items():
            if is_metric(value):
                entry[prefix + name] = _metric(name, [of[name] for of in kept])
            elif name in _ITERATE:
                entry[prefix + name] = common([of[name] for of in kept])
    if kept := [seed["training"] for seed in seeds if "training" in seed]:
        returns = [of["return/step_1"] for of in kept]
        entry["training"] = {"env_steps": kept[0]["env_steps"], **_over_seeds(returns, 3)}
    return entry


def commits(seed: Mapping[str, Any]) -> str | None:
    """The versions that made a run: of its start, and those that continued it after an iteration."""
    later = [f"{part['commit']} after {part['iteration']}" for part in seed.get("resumed", [])]
    return ", ".join([str(seed["commit"]), *later]) if later else seed["commit"]


def common(values: Sequence[Any]) -> Any:
    """The value that all seeds share, or a list of each one's."""
    return values[0] if all(value == values[0] for value in values) else list(values)


def bootstrap_interval(values: Sequence[float]) -> list[float] | None:
    """Return the ends of a 95 % percentile-bootstrap interval of the mean, or None of fewer than three values."""
    if len(values) < 3:
        return None
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    means = np.asarray(values, float)[drawn].mean(axis=1)
    return [round(float(end), 3) for end in np.quantile(means, [0.025, 0.975])]


def _metric(name: str, kept: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A metric over seeds; `mean` is None where a task diverged, of which the count and the median tell more."""
    errors = [of["standard_error"] for of in kept]
    if name.startswith("return/"):
        means = [of["mean"] for of in kept]
        interval = {"bootstrap_95": bootstrap_interval(means)}
        return {**_over_seeds(means, 3), **interval, "standard_error_over_tasks": errors}
    per_task = np.array([task_values(of) for of in kept])
    half_widths = [INTERVAL * error for error in errors if error is not None]
    return {
        **_over_seeds([of["mean"] for of in kept], 5),
        "standard_error_over_tasks": errors,
        "interval_95": None if None in errors else _rounded(np.mean(half_widths), 5),
        "median": _rounded(np.median(per_task), 5),
        "diverged_tasks": int((~(per_task < DIVERGED)).sum()),
    }


def _over_seeds(values: Sequence[float | None], digits: int) -> dict[str, Any]:
    """Mean over seeds and its standard error, None of a single seed or where a value is not finite."""
    numbers = np.array([np.nan if value is None else value for value in values])
    error = numbers.std(ddof=1) / len(numbers) ** 0.5 if len(numbers) > 1 else np.nan
    return {
        "mean": _rounded(numbers.mean(), digits),
        "standard_error": _rounded(error, digits),
        "per_seed": [_rounded(number, digits) for number in numbers],
    }


def _rounded(value: Any, digits: int) -> float | None:
    return round(float(value), digits) if np.isfinite(value) else None
