"""Tables of results in Markdown, made from the digest of all results and from what the recipes say was published."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarl.experiments.runner.arrival import Arrival
from metarl.experiments.runner.method_table import MethodEntry

Entry = Mapping[str, Any]  # of a row in the digest
Published = Mapping[str, Sequence[float]]  # by row
NOT_RUN = "not run"
_STEPS = (0, 1, 2, 3)
TRIAL = "return/trial"  # the metric that rows of RL^2 alone have
_FURTHER = {  # metrics that have no steps
    "nearest_neighbour": "nearest neighbour",
    "nll": "negative log-likelihood",
    "members": "mean error of its members",
    "moving_units": "share of units that move",
}


def best_row(entries: Mapping[str, Entry]) -> str | None:
    """The row with the best mean return over the gradient steps 1 to 3, among those with the most seeds.

    None if no row has three steps.
    """

    def quality(name: str) -> tuple[int, float]:
        means = [entries[name][f"return/step_{step}"]["mean"] for step in _STEPS[1:]]
        return len(entries[name]["seeds"]), sum(means)

    adapted = [name for name, entry in entries.items() if "return/step_3" in entry]
    return max(adapted, key=quality, default=None)


def overview(rows: Sequence[tuple[str, str, Entry, Sequence[float]]]) -> str:
    """The leading row of each environment: means, their 95 % intervals and, in brackets, what the paper reports.

    Args:
        rows: of each environment its name, the row's, its entry, and published returns after 0, 1, ... steps.
    """
    columns = ["environment", "row", "1 step", "2 steps", "3 steps", "seeds", "million environment steps"]
    lines = []
    for environment, name, entry, published in rows:
        cells = [_with_interval(entry[f"return/step_{step}"], published[step : step + 1]) for step in (1, 2, 3)]
        effort = [str(len(entry["seeds"])), f"{np.mean(entry['env_steps']) / 1e6:.1f}"]
        lines.append([environment.replace("_", " "), name, *cells, *effort])
    return markdown(columns, lines)


def arrivals(rows: Sequence[tuple[str, str, Sequence[Arrival | None]]]) -> str:
    """What the seeds of rows needed to exceed the published return after one step: the median, and each seed.

    Args:
        rows: of each the environment's name, the row's, and when each seed arrived, None if it never did.
    """
    lines = []
    for environment, name, seeds in rows:
        steps = [np.inf if of is None else of.env_steps / 1e6 for of in seeds]
        minutes = [np.inf if of is None else of.minutes for of in seeds]
        lines.append([environment.replace("_", " "), name, _median_and_each(steps), _median_and_each(minutes)])
    return markdown(["environment", "row", "million environment steps", "minutes"], lines)


def returns(entries: Mapping[str, Entry], published: Published, training: bool) -> str:
    """Returns of the last iterates and of the best ones, with the published returns in brackets.

    Args:
        entries: by row.
        published: by row.
        training: whether to add the mean return in training after one step, over a window of environment steps that the
            head of the column names: rows of different length can be compared by it at equal environment steps.
    """
    columns = ["row", *(_steps(step) for step in _STEPS), "iterations", "seeds", "environment steps", "hours"]
    windows = [entry["training"]["env_steps"] for entry in entries.values() if training and "training" in entry]
    if windows:
        first, last = windows[0]
        columns.append(f"training, {first / 1e6:.1f} to {last / 1e6:.1f} million steps")
    lines = []
    for name, entry in entries.items():
        for label, prefix in ((name, ""), ("best iterate", "best/")):
            if f"{prefix}iterations" not in entry:
                continue
            cells = [_return(entry, step, () if prefix else published.get(name, ()), prefix) for step in _STEPS]
            cells += _effort(entry, prefix)
            cells.append("" if prefix else f"{np.mean(entry['seconds']) / 3600:.2f}")
            if windows:
                cells.append(_mean(entry.get("training")) if not prefix else "")
            lines.append([label, *cells])
    return markdown(columns, lines)


def trials(rows: Sequence[tuple[str, str, Entry, Sequence[float]]]) -> str:
    """Returns of RL^2 in the first and in the last episode of a trial, and their sum, with what was published of it.

    Args:
        rows: environment, row, its entry, and the published return of every episode, which may be unknown.
    """
    columns = ["environment", "row", "episodes", "first episode", "last episode", "trial", "published, trial"]
    lines = []
    for environment, name, entry, published in rows:
        last = max(int(key.rsplit("_", 1)[1]) for key in entry if key.startswith("return/step_"))
        whole = entry[TRIAL]
        digits = 2 if abs(whole["mean"]) < 10 else 1
        cells = [_mean(value, digits) for value in (entry["return/step_0"], entry[f"return/step_{last}"], whole)]
        known = f"{sum(published):.{digits}f}" if len(published) == last + 1 else ""
        lines.append([environment.replace("_", " "), name, str(last + 1), *cells, known, *_effort(entry, "")])
    return markdown([*columns, "iterations", "seeds", "environment steps"], lines)


def supervised(entries: Mapping[str, Entry], metric: str, steps: Sequence[int], published: Published) -> str:
    """Accuracies in percent, or mean squared errors, after some gradient steps, on test tasks.

    Beside each mean stands its standard error over seeds, or of a single seed half of the 95 % interval over tasks.

    Args:
        entries: by row.
        metric: `accuracy` or `mse`.
        steps: gradient steps that have a column.
        published: by row, one number or several.
    """
    columns = ["row", *map(_steps, steps), "iterations", "seeds", "published"]
    lines = []
    for name, entry in entries.items():
        others = sorted({key.split("/")[0] for key in entry if key.startswith("shots_")})
        for shots in ("", *others):
            prefix = f"{shots}/" if shots else ""
            label = f"{name}, K = {shots[6:] or entry['shots']}" if others else name
            cells = [_score(entry.get(f"{prefix}{metric}/step_{step}"), metric) for step in steps]
            effort = [shown(entry["iterations"]), str(len(entry["seeds"]))]
            lines.append([label, *cells, *effort, "" if shots else _published(published.get(name, ()), metric)])
        for further, words in _FURTHER.items():
            if f"{metric}/{further}" in entry:
                cells = [_score(entry[f"{metric}/{further}"], metric), *[""] * (len(steps) - 1)]
                lines.append([f"{name}, {words}", *cells, *effort, ""])
    return markdown(columns, lines)


def instances(entries: Mapping[str, Entry], numbers: Sequence[int], published: Published) -> str:
    """Accuracies in percent at the first, second, ... example of a class in a sequence, ours and published ones.

    Args:
        entries: of all rows; those that are not among them were not run.
        numbers: of the examples that have a column.
        published: by row.
    """
    lines = []
    for name, known in published.items():
        own = [_score(entries.get(name, {}).get(f"accuracy/instance_{number}"), "accuracy") for number in numbers]
        lines.append([name, *(cell or NOT_RUN for cell in own)])
        lines.append([f"{name}, published", *(f"{100 * value:.1f}" for value in known)])
    return markdown(["row", *map(str, numbers)], lines)


def few_shot_methods(rows: Sequence[tuple[str, MethodEntry, Entry | None, str, Sequence[float]]]) -> str:
    """All methods: what they adapt, what passes from support to query, what was published and what we have.

    Args:
        rows: of each method its family, the method, the entry of its row if there is one, the name of the metric in
            it, and what was published.
    """
    columns = ["family", "method", "a task adapts", "from support to query", "command", "metric", "published", "ours"]
    lines, before = [], ""
    for family, method, entry, metric, published in rows:
        chosen = f'--recipe "{method.recipe}"' if method.recipe else f"--method {method.flag}"
        kind = metric.split("/")[0]
        own = "no recipe" if not method.recipe else NOT_RUN
        if entry is not None:
            own = f"{_score(entry.get(metric), kind) or NOT_RUN} ({_seeds(len(entry['seeds']))})"
        cells = [method.name, method.adapts, method.passes, f"`{method.script}.py {chosen}`"]
        known = _published(published[:1], kind) or "-"
        lines.append(
            [family if family != before else "", *cells, "accuracy, %" if kind == "accuracy" else kind, known, own]
        )
        before = family
    return markdown(columns, lines)


def headline(entry: Entry) -> str:
    """One line on a row: its means after some gradient steps, its seeds and its iterations."""
    metric = next(name.split("/")[0] for name in entry if name.endswith("/step_0"))
    count = sum(name.startswith(f"{metric}/step_") for name in entry)
    steps = list(range(count)) if count <= 6 else [0, 1, count // 2, count - 1]
    values = [entry[f"{metric}/step_{step}"] for step in steps]
    means = [_mean(value) if metric == "return" else _score(value, metric) for value in values]
    after = f"after {', '.join(map(str, steps))} steps"
    seeds = f"seeds {' '.join(map(str, entry['seeds']))}"
    return f"{metric} {' / '.join(means)} {after}; {seeds}, {shown(entry['iterations'])} iterations"


def shown(value: Any) -> str:
    """A number, or the range of several."""
    values = value if isinstance(value, list) else [value]
    return " to ".join(f"{of:,}" for of in sorted({min(values), max(values)}))


def _median_and_each(values: Sequence[float]) -> str:
    each = ["never" if np.isinf(value) else f"{value:.1f}" for value in [float(np.median(values)), *values]]
    return f"{each[0]} ({', '.join(each[1:])})"


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _effort(entry: Entry, prefix: str) -> list[str]:
    """Iterations, seeds and environment steps."""
    return [shown(entry[f"{prefix}iterations"]), str(len(entry["seeds"])), shown(entry[f"{prefix}env_steps"])]


def _with_interval(value: Entry, published: Sequence[float]) -> str:
    interval = value["bootstrap_95"]
    ends = f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""
    return f"{value['mean']:.1f}{ends}" + "".join(f" ({known:.1f})" for known in published)


def _return(entry: Entry, step: int, published: Sequence[float], prefix: str) -> str:
    own = _mean(entry.get(f"{prefix}return/step_{step}"))
    return f"{own} ({published[step]:.1f})" if own and step < len(published) else own


def _mean(value: Entry | None, digits: int = 1) -> str:
    if value is None:
        return ""
    error = value["standard_error"]  # None of a single seed
    return f"{value['mean']:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _published(values: Sequence[float], metric: str) -> str:
    scale = 100 if metric == "accuracy" else 1
    return ", ".join(f"{round(scale * value, 3):g}" for value in values)


def _score(value: Entry | None, metric: str) -> str:
    if value is None:
        return ""
    if value["mean"] is None or value["mean"] > 1e3:
        return "diverged"
    scale, digits = (100, 1) if metric == "accuracy" else (1, 3)
    error = value["standard_error"] if len(value["per_seed"]) > 1 else value["interval_95"]
    return f"{scale * value['mean']:.{digits}f} ± {scale * error:.{digits}f}"
