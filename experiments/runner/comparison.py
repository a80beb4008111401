"""Rows of results side by side, as text: every seed, interquartile means, and what tells two rows apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarl.core.settings import SettingError
from metarl.experiments.runner.results import is_metric, task_values
from metarl.experiments.runner.statistics import (
    Interval,
    improvement_interval,
    iqm,
    iqm_interval,
    mean_interval,
    probability_of_improvement,
)

Row = Mapping[str, Any]  # as `results` describes it
_SMALLER_IS_BETTER = ("mse", "nll")


@dataclass(frozen=True)
class Scores:
    """The last iterates of a row by one metric.

    Attributes:
        name: of the row.
        metric: such as `return/step_1`.
        seeds: the S seeds.
        per_task: (S, M) the metric on each test task; infinite where a task diverged.
        tasks: of each seed the parameters of its test tasks, None where results do not tell them.
        env_steps: of each seed; empty in supervised learning.
    """

    name: str
    metric: str
    seeds: tuple[int, ...]
    per_task: np.ndarray
    tasks: tuple[Any, ...]
    env_steps: tuple[int, ...] = ()

    @property
    def larger_is_better(self) -> bool:
        """Whether the metric is to be maximised."""
        return not any(part in _SMALLER_IS_BETTER for part in self.metric.split("/"))


def metrics_of(row: Row) -> list[str]:
    """The metrics of a row's last iterates, which all of its seeds have."""
    seeds = [seed["last"] for seed in row["seeds"]]
    return [name for name, value in seeds[0].items() if is_metric(value) and all(name in of for of in seeds)]


def scores_of(row: Row, metric: str) -> Scores:
    """The scores of a row; SettingError if its seeds have different numbers of test tasks."""
    kept = [seed["last"] for seed in row["seeds"]]
    scores = [task_values(of[metric]) for of in kept]
    if len(counts := {len(of) for of in scores}) > 1:
        raise SettingError(f"the seeds of {row['name']!r} have {sorted(counts)} test tasks; allowed: one number")
    return Scores(
        row["name"],
        metric,
        tuple(seed["seed"] for seed in row["seeds"]),
        np.array(scores, float),
        tuple(seed.get("tasks") for seed in row["seeds"]),
        tuple(of["env_steps"] for of in kept if "env_steps" in of),
    )


def shown_scores(rows: Sequence[Scores]) -> str:
    """A line per row: interquartile mean over seeds and tasks with its interval, environment steps, and every seed."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'row':<{width}} {'IQM':>9} {'95 % interval':>20} {'M steps':>8}  mean of each seed"]
    for row in rows:
        steps = f"{np.mean(row.env_steps) / 1e6:.1f}" if row.env_steps else ""
        each = ", ".join(f"{seed}: {_number(of.mean())}" for seed, of in zip(row.seeds, row.per_task, strict=True))
        interval = _ends(iqm_interval([row.per_task]))
        lines.append(f"{row.name:<{width}} {_number(iqm(row.per_task)):>9} {interval:>20} {steps:>8}  {each}")
    return "\n".join(lines)


def comparison(ours: Scores, theirs: Scores) -> str:
    """What tells two rows apart: the probability of improvement over runs, and differences of runs of the same seed."""
    sign = 1 if ours.larger_is_better else -1
    one, other = (sign * of.per_task.mean(axis=1) for of in (ours, theirs))
    share, interval = probability_of_improvement(one, other), improvement_interval(one, other)
    lines = [f"P({ours.name} is better than {theirs.name}) = {f'{share:.2f} {_ends(interval)}'.rstrip()}, over runs"]
    shared = [seed for seed in ours.seeds if seed in theirs.seeds]
    if not shared:
        return f"{lines[0]}\nno pairs: they have no seed in common"
    pairs = [(ours.seeds.index(seed), theirs.seeds.index(seed)) for seed in shared]
    with np.errstate(invalid="ignore"):  # where both diverged
        values = np.array([ours.per_task[own].mean() - theirs.per_task[of].mean() for own, of in pairs])
    each = ", ".join(f"{seed}: {_number(value)}" for seed, value in zip(shared, values, strict=True))
    lines.append(f"{ours.name} - {theirs.name}, by seed: {each}")
    better = int((sign * values > 0).sum())
    mean = f"{_number(values.mean())} {_ends(mean_interval(values))}".rstrip()
    lines.append(f"their mean: {mean}; better with {better} of {len(values)} seeds")
    if different := [
        seed for seed, (own, of) in zip(shared, pairs, strict=True) if ours.tasks[own] != theirs.tasks[of]
    ]:
        lines.append(f"test tasks differ between the rows: seed {', '.join(map(str, different))}")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f"[{_number(interval[0])}, {_number(interval[1])}]"
