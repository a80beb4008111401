"""Summary, tables and pictures of the reinforcement-learning results that are kept."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metarl.experiments.runner import plots, recipes, reproduction
from metarl.experiments.runner.reproduction import command, commits, common, keep_summary, seed_folders, shown

ADAPTED = [f"return/step_{step}" for step in (1, 2, 3)]


def report() -> None:
    """Write summary.json, a figure per experiment, and tables in Markdown, from the results that are kept."""
    summary: dict[str, dict[str, Any]] = {}
    for figure, recipe in recipes.FIGURES.items():
        for name in recipe.methods:
            if folders := seed_folders(figure, name):
                summary.setdefault(figure, {})[name] = _summarise(figure, name, folders)
    for figure, group, methods in groups(summary):
        if group == "comparison":
            _compare_training(figure, methods)
    keep_summary(summary)
    print(overview(summary))
    for figure, group, methods in groups(summary):
        compared = [_compared(figure, name, entry) for name, entry in methods.items()]
        picture = plots.comparison(figure.replace("_", " "), compared)
        picture.savefig(reproduction.RESULTS / figure / f"{group}.png", dpi=120)
        print(table(figure, group, methods))


def groups(summary: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Of each table and picture: figure, group, entries of its methods; `maml`'s is empty where it has not been run.

    The groups are `adaptation`, the paper's methods and the best of all, and `comparison`, the others.
    """
    for figure, recipe in recipes.FIGURES.items():
        methods = summary.get(figure, {})
        shown_first = dict.fromkeys([*recipe.paper, *best(methods)])
        for group, names in (("adaptation", shown_first), ("comparison", ["maml", *recipe.comparison])):
            chosen = {name: methods.get(name, {}) for name in names if name in methods or name == "maml"}
            if chosen.keys() - {"maml"} or (group == "adaptation" and chosen["maml"]):
                yield figure, group, chosen


def best(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of the methods with the most seeds the one with the best mean return over the gradient steps 1 to 3, if any."""
    adapted = {name: entry for name, entry in methods.items() if ADAPTED[-1] in entry}

    def merit(name: str) -> tuple[int, float]:
        return len(adapted[name]["seeds"]), sum(adapted[name][key]["mean"] for key in ADAPTED)

    return sorted(adapted, key=merit)[-1:]


def overview(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table: the best method of each figure."""
    columns = ["1 step", "2 steps", "3 steps", "iterations", "seeds", "environment steps"]
    rows = [f"| environment | best method | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for figure, recipe in recipes.FIGURES.items():
        for name in best(summary.get(figure, {})):
            entry = summary[figure][name]
            published = dict(zip(ADAPTED, recipe.paper["maml"].published[1:], strict=False))
            cells = [_beside(entry[key], published.get(key)) for key in ADAPTED]
            rows.append(f"| {figure.replace('_', ' ')} | {' | '.join([name, *cells, *_effort(entry, '')])} |")
    return "\n".join(rows) + "\n"


def table(figure: str, group: str, methods: dict[str, Any]) -> str:
    """A Markdown table: ours, mean and standard error over seeds, with the published number in brackets.

    Of a method without results it has the published numbers alone. A comparison has a column more: the mean return of
    training after one step over the last fifth of the environment steps that all methods have taken.
    """
    columns = ["0 steps", "1 step", "2 steps", "3 steps", "iterations", "seeds", "environment steps", "hours"]
    if group == "comparison":
        first, last = next(entry["training"]["env_steps"] for entry in methods.values() if entry)
        columns.append(f"training, {first / 1e6:.1f} to {last / 1e6:.1f} million steps")
    rows = [f"| {figure} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, entry in methods.items():
        for label, prefix in ((name, ""), (f"{name}, best iterate", "best/")):
            published = recipes.FIGURES[figure].methods[name].published
            cells = []
            for step in range(4):
                value = entry.get(f"{prefix}return/step_{step}")
                known = step < len(published) and (value or not entry)
                cells.append(_beside(value, published[step] if known else None))
            if f"{prefix}iterations" in entry:
                cells += [*_effort(entry, prefix), f"{np.mean(entry['seconds']) / 3600:.2f}"]
                if group == "comparison":
                    cells.append("" if prefix else _cell(entry["training"]))
            elif entry or prefix:
                continue
            rows.append(f"| {' | '.join([label, *cells, *[''] * (len(columns) - len(cells))])} |")
    return "\n".join(rows) + "\n"


def _effort(entry: dict[str, Any], prefix: str) -> list[str]:
    """Iterations, seeds and environment steps, of the last iterates or, with the prefix `best/`, the best ones."""
    return [shown(entry[f"{prefix}iterations"]), str(len(entry["seeds"])), shown(entry[f"{prefix}env_steps"])]


def _beside(value: dict[str, Any] | None, published: float | None) -> str:
    paper = "" if published is None else f"({published:.1f})"
    return f"{_cell(value)} {paper}".strip()


def _cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    error = value["standard_error"]
    return f"{value['mean']:.1f}" + ("" if error is None else f" ± {error:.1f}")  # there is none of a single seed


def _summarise(figure: str, name: str, folders: Sequence[Path]) -> dict[str, Any]:
    method = recipes.FIGURES[figure].methods[name]
    records = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    curves = [_curve(folder) for folder in folders]
    seeds = [record["seed"] for record in records]
    iterations = [record["iteration"] for record in records]
    changes = [f"after iteration {after} {more}" for after, more in method.then if after < max(iterations)]
    entry: dict[str, Any] = {
        "seeds": seeds,
        "dynamics": records[0]["dynamics"],
        "seconds": [curve["seconds"] for curve in curves],
        "machine": curves[0]["machine"],
        "commit": common([commits(config) for config in configs]),
        "command": command("reproduce", figure, name, seeds, iterations if method.trained else []),
        "flags": "; ".join([method.flags, *changes]),
    }
    for prefix, file in (("", "evaluation.json"), ("best/", "best_evaluation.json")):
        found = [json.loads((folder / file).read_text()) for folder in folders if (folder / file).exists()]
        if not found:
            continue
        entry[f"{prefix}iterations"] = common([record["iteration"] for record in found])
        entry[f"{prefix}env_steps"] = common([record["env_steps"] for record in found])
        for key in sorted(found[0]):
            if key.startswith("return/"):
                entry[prefix + key] = {
                    **_over_seeds([record[key]["mean"] for record in found]),
                    "standard_error_over_tasks": [record[key]["standard_error"] for record in found],
                }
    return entry


def _compare_training(figure: str, methods: dict[str, Any]) -> None:
    """Note in each entry what training returned after one step over the last fifth of the steps that all have taken."""
    kept = {name: seed_folders(figure, name) for name in methods}
    budget = min(np.min(methods[name]["env_steps"]) for name, folders in kept.items() if folders)
    for name, folders in kept.items():
        means = []
        for curve in map(_curve, folders):
            steps = _env_steps(curve, methods[name])
            last = int(np.abs(steps - budget).argmin())
            first = min(last, int(np.searchsorted(steps, 0.8 * budget, side="right")))
            means.append(float(np.mean(curve["return/step_1"][first : last + 1])))
        if means:
            methods[name]["training"] = {"env_steps": [int(0.8 * budget), int(budget)], **_over_seeds(means)}


def _env_steps(curve: Mapping[str, Any], entry: Mapping[str, Any]) -> np.ndarray:
    """Environment steps after each iteration; where a curve does not say, every iteration counts alike."""
    iterations = np.arange(1, len(curve["return/step_0"]) + 1)
    return np.array(curve.get("env_steps", iterations * np.mean(entry["env_steps"]) / np.mean(entry["iterations"])))


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    several = len(values) > 1
    return {
        "mean": round(float(np.mean(values)), 3),
        "standard_error": round(float(np.std(values, ddof=1)) / len(values) ** 0.5, 3) if several else None,
        "per_seed": np.round(values, 3).tolist(),
    }


def _curve(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "curve.json").read_text())


def _compared(figure: str, name: str, entry: dict[str, Any]) -> plots.Compared:
    published = recipes.FIGURES[figure].methods[name].published
    if not entry:
        return plots.Compared(name, published)
    count = len(entry["seeds"])
    returns = [entry[key] for key in sorted(entry) if key.startswith("return/step_")]
    curves = [_curve(folder) for folder in seed_folders(figure, name)]
    training = [[curve[key] for curve in curves if curve.get(key)] for key in ("return/step_0", "return/step_1")]
    return plots.Compared(
        name,
        published,
        label=f"{name} ({shown(entry['iterations'])} iterations, {count} seed{'s' * (count > 1)})",
        means=[value["mean"] for value in returns],
        errors=[value["standard_error"] for value in returns] if count > 1 else None,
        training=training,
        env_steps=[_env_steps(curve, entry) for curve in curves] if any(training) else (),
    )
