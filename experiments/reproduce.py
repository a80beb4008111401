"""Reproduce the paper's reinforcement-learning figures: `python experiments/reproduce.py navigation_2d --seeds 0 1 2`.

`--methods 'maml, lvc' first-order ProMP DiCE E-MAML Meta-SGD ANIL` runs other meta-learners beside `maml`, at equal
environment steps, and `--methods 'exact products'` runs `maml` with Hessian products from all samples. For each method
and seed a run is trained under runs/reproduce (continued if it was stopped), evaluated, and what matters of it is kept
under experiments/results. What is kept can be continued where the runs are not: copy its folder to the same place under
runs/reproduce first. `--report` makes the tables and figures from what is there.
"""

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import evaluate, pictures, training
from experiments.configuration import OneLineParser
from experiments.pictures import save_json
from experiments.reproduction import (
    RESULTS,
    RUNS,
    choose,
    command,
    commits,
    common,
    keep_summary,
    seed_folders,
    shown,
    slug,
    train_run,
)
from metarl.runs import Run, load_checkpoint


@dataclass(frozen=True)
class Method:
    """One line of a figure.

    Attributes:
        flags: of the experiment's script.
        published: the paper's mean return after 0, 1, ... gradient steps.
        trained: whether there is anything to train.
        then: iterations, in order, each with flags for those after it.
    """

    flags: str = ""
    published: tuple[float, ...] = ()
    trained: bool = True
    then: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Reproduction:
    """What is run on one environment.

    Attributes:
        paper: the methods of the paper's figure by name, `maml` among them.
        comparison: other meta-learners by name, at the same environment steps as `maml`.
    """

    paper: dict[str, Method]
    comparison: dict[str, Method] = field(default_factory=dict)

    @property
    def methods(self) -> dict[str, Method]:
        """All methods by name."""
        return {**self.paper, **self.comparison}

    @property
    def groups(self) -> dict[str, list[str]]:
        """Names of the methods that share a table and a figure, by the name of the figure's file."""
        return {"adaptation": list(self.paper), "comparison": ["maml", *self.comparison]}


PRETRAINED, RANDOM = "--inner-steps 0 --inner-step-size", "--iterations 1 --inner-step-size"
HALVED = "--later-factor 0.5"  # published returns that go on changing after one step had no factor of 0.01
ORACLE = "--inner-steps 0 --observe-task --evaluation-steps 0"

CONTEXT = "--adaptation cavia"  # the paper's context vector, whose learned start the first layer's bias can stand for
GAE = {"first-order, GAE 0.95": Method("--order first --gae-lambda 0.95")}
SHORT_COMPARISON = {"maml, lvc": Method("--estimator lvc"), "first-order": Method("--order first"), **GAE}
LATER = {"maml, later factor 0.3": Method("--later-factor 0.3")}  # the best on other tasks than the test tasks


def small_batches(tasks: int, iterations: int, more: str = "", steps: dict[int, float] | None = None) -> Method:
    """More updates from as many environment steps: a part of the paper's tasks in each, and more iterations.

    As the deviation of a policy falls, an inner gradient's noise moves it further: `steps` are the sizes of inner steps
    after some iterations.
    """
    flags = f"--order first --gae-lambda 0.95 --support-lambda 0.8 --max-kl 0.02 --tasks {tasks}"
    then = tuple((iteration, f"--inner-step-size {size}") for iteration, size in (steps or {}).items())
    return Method(f"{flags} --iterations {iterations} --evaluate-every 250 {more}".strip(), then=then)


def quadratic(methods: dict[str, Method]) -> dict[str, Method]:
    """The same methods with products of observations in the baseline."""
    return {f"{name}, quadratic": replace(of, flags=f"{of.flags} --baseline quadratic") for name, of in methods.items()}


COMPARISON = {
    "exact products": Method("--product-fraction 1"),
    **SHORT_COMPARISON,
    **quadratic(GAE),
    "ProMP": Method("--estimator likelihood-ratio --outer ppo"),
    "DiCE": Method("--estimator dice"),
    "E-MAML": Method("--initial-sampling"),
    "Meta-SGD": Method("--adaptation meta-sgd"),
    "ANIL": Method("--adaptation anil"),
}

SMALL = "first-order, small batches"
CHEETAH = {SMALL: small_batches(8, 500, "--later-factor 0.2")}  # factors: the best on other tasks than the test tasks
SHORTER = ("--inner-step-size 0.03", {600: 0.02, 900: 0.01})  # of half-cheetah velocity
TWO_TASKS = ("--survival-bonus 2 --evaluate-every 1000", {300: 0.06, 417: 0.04, 530: 0.025, 1163: 0.015})
FIGURES = {
    "navigation_2d": Reproduction(
        {
            "maml": Method("", (-40.41, -11.68, -3.33, -3.23)),
            "pretrained": Method(f"{PRETRAINED} 0.5 --outer adam", (-40.81, -19.73, -11.72, -8.48)),
            "random": Method(f"{RANDOM} 0.5", (-82.66, -57.96, -53.84, -46.81), trained=False),
            "oracle": Method(ORACLE, (-2.29,)),
            "context vector": Method(CONTEXT, (-42.42, -13.90, -5.17, -3.18)),
        },
        {**LATER, **COMPARISON},
    ),
    "half_cheetah_direction": Reproduction(
        {
            "maml": Method("", (-50.69, 293.19, 313.48, 315.65)),
            "pretrained": Method(f"{PRETRAINED} 0.2", (-43.03, -24.75, -12.85, 19.57)),
            "random": Method(f"{RANDOM} 1.0", (-35.74, 21.83, 62.32, 86.19), trained=False),
            "oracle": Method(ORACLE, (442.69,)),
            "context vector": Method(CONTEXT, (-40.49, -44.08, -38.27, -42.50)),
        },
        {**COMPARISON, **CHEETAH, **quadratic(CHEETAH)},
    ),
    "half_cheetah_velocity": Reproduction(
        {
            "maml": Method("", (-129.53, -78.57, -66.62, -60.78)),
            "pretrained": Method(f"{PRETRAINED} 0.02", (-158.00, -135.39, -128.47, -133.61)),
            "random": Method(f"{RANDOM} 0.1", (-254.83, -254.33, -246.79, -230.83), trained=False),
            "oracle": Method(ORACLE, (-54.47,)),
        },
        {
            **SHORT_COMPARISON,
            **quadratic(GAE),
            SMALL: small_batches(20, 950, "--later-factor 0.3"),
            f"{SMALL}, shorter inner steps": small_batches(10, 1900, *SHORTER),
            f"{SMALL}, shorter inner steps, longer": small_batches(10, 2850, *SHORTER),
        },
    ),
    "ant_velocity": Reproduction(
        {
            "maml": Method("", (30.58, 96.74, 100.06, 101.41)),
            "pretrained": Method(f"{PRETRAINED} 0.2", (-1.83, 6.11, 8.48, 9.47)),
            "random": Method(f"{RANDOM} 1.0", (-78.64, -62.81, -48.55, -35.57), trained=False),
            "oracle": Method(ORACLE, (107.89,)),
        },
        {
            **SHORT_COMPARISON,
            SMALL: small_batches(20, 750),
            f"{SMALL}, survival bonus": small_batches(20, 750, "--survival-bonus 2", {252: 0.06}),
        },
    ),
    "ant_direction": Reproduction(
        {
            "maml": Method("", (8.66, 499.15, 500.68, 499.11)),
            "pretrained": Method(f"{PRETRAINED} 0.2 {HALVED}", (3.16, 1.27, 6.51, 6.87)),
            "random": Method(f"{RANDOM} 1.0 {HALVED}", (3.11, 9.25, 15.96, 26.12), trained=False),
            "oracle": Method(ORACLE, (524.80,)),
        },
        {
            **SHORT_COMPARISON,
            SMALL: small_batches(8, 2875),
            f"{SMALL}, shorter inner steps": small_batches(8, 2875, steps={1964: 0.05, 2368: 0.035}),
            f"{SMALL}, two tasks": small_batches(2, 11500, *TWO_TASKS),
        },
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate what is missing, then report."""
    parser = OneLineParser("Train and evaluate the methods of one of the paper's figures, or report what has been run.")
    known = {figure: reproduction.methods for figure, reproduction in FIGURES.items()}
    usual = {figure: reproduction.paper for figure, reproduction in FIGURES.items()}
    with training.one_line_errors():
        chosen = choose(parser, known, usual, arguments)
        for name in chosen.methods:
            for seed in chosen.seeds:
                run_method(chosen.figure, name, seed, chosen.flags)
        report()


def run_method(figure: str, name: str, seed: int, flags: Sequence[str]) -> None:
    """Train, evaluate and keep one run; whatever of that is already done is not done again.

    Args:
        figure: the experiment.
        name: of the method.
        seed: of the run.
        flags: of the experiment's script, besides those of the method.
    """
    method, experiment = FIGURES[figure].methods[name], training.find_experiment(figure)
    directory, kept = (base / figure / slug(name) / f"seed{seed}" for base in (RUNS, RESULTS))
    train_run(experiment, directory, kept, seed, [*method.flags.split(), *flags], method.trained, method.then)
    keep_run(figure, name, seed)


def keep_run(figure: str, name: str, seed: int) -> None:
    """Evaluate a run as far as it has come, and keep what matters of it."""
    method = FIGURES[figure].methods[name]
    directory, kept = (base / figure / slug(name) / f"seed{seed}" for base in (RUNS, RESULTS))
    kept.mkdir(parents=True, exist_ok=True)
    _evaluate_once(directory, [], kept / "evaluation.json")
    if seed == 0 and (directory / "paths.png").exists():  # one picture of the paths is enough
        shutil.copy(directory / "paths.png", kept / "paths.png")
    if method.trained:
        _evaluate_once(directory, ["--best"], kept / "best_evaluation.json")
        shutil.copy(directory / "best.pt", kept / "best.pt")
    for file in ("config.json", "checkpoint.pt"):
        shutil.copy(directory / file, kept / file)
    lines = Run(directory).metrics()
    if method.trained and not lines:  # the folder of a kept run was copied here, and there is nothing new
        return
    recorded = [key for key in (lines[0] if lines else {}) if "return/" in key or key == "env_steps"]
    curve = {key: [round(line[key], 3) for line in lines] for key in recorded}
    seconds = sum(line["seconds/rollout"] + line["seconds/adapt"] + line["seconds/update"] for line in lines)
    if lines and (before := lines[0]["iteration"] - 1):  # the same, and it was continued
        earlier = _curve(kept)
        seconds += earlier["seconds"] * before / len(earlier["return/step_0"])
        curve = {key: earlier[key][:before] + values for key, values in curve.items() if key in earlier}
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    save_json(kept / "curve.json", {**curve, "seconds": round(seconds), "machine": machine})


def _evaluate_once(directory: Path, flags: list[str], kept: Path) -> None:
    """Keep the evaluation of a checkpoint; the run may hold it already, and what is kept may be that."""
    iteration = load_checkpoint(directory / ("best.pt" if flags else "checkpoint.pt"))["learner"]["iteration"]
    made = directory / ("evaluation-best" if flags else "") / "evaluation.json"
    if not made.exists() or json.loads(made.read_text())["iteration"] != iteration:
        evaluate.main([str(directory), *flags, "--output", str(made.parent)])
    shutil.copy(made, kept)


def report() -> None:
    """Write summary.json, a figure per experiment, and tables in Markdown, from the results that are kept."""
    summary: dict[str, dict[str, Any]] = {}
    for figure, reproduction in FIGURES.items():
        for name in reproduction.methods:
            if folders := seed_folders(RESULTS / figure, name):
                summary.setdefault(figure, {})[name] = _summarise(figure, name, folders)
    for figure, group, methods in groups(summary):
        if group == "comparison":
            _compare_training(figure, methods)
    keep_summary(RESULTS / "summary.json", summary)
    print(overview(summary))
    for figure, group, methods in groups(summary):
        compared = [_compared(figure, name, entry) for name, entry in methods.items()]
        picture = pictures.comparison(figure.replace("_", " "), compared)
        picture.savefig(RESULTS / figure / f"{group}.png", dpi=120)
        print(table(figure, group, methods))


def groups(summary: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Of each table and picture: figure, group, entries of its methods; `maml`'s is empty where it has not been run."""
    for figure, reproduction in FIGURES.items():
        methods = summary.get(figure, {})
        for group, names in reproduction.groups.items():
            chosen = {name: methods.get(name, {}) for name in names if name in methods or name == "maml"}
            if chosen.keys() - {"maml"} or (group == "adaptation" and chosen["maml"]):
                yield figure, group, chosen


def overview(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table: of each figure the method with the best mean return over the gradient steps 1 to 3."""
    columns = ["1 step", "2 steps", "3 steps", "iterations", "seeds", "environment steps"]
    rows = [f"| environment | best method | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    keys = [f"return/step_{step}" for step in (1, 2, 3)]
    for figure, reproduction in FIGURES.items():
        adapted = {name: entry for name, entry in summary.get(figure, {}).items() if keys[-1] in entry}
        if adapted:
            best = max(adapted, key=lambda name: sum(adapted[name][key]["mean"] for key in keys))
            published = dict(zip(keys, reproduction.paper["maml"].published[1:], strict=False))
            cells = [_beside(adapted[best][key], published.get(key)) for key in keys]
            rows.append(f"| {figure.replace('_', ' ')} | {' | '.join([best, *cells, *_effort(adapted[best], '')])} |")
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
            published = FIGURES[figure].methods[name].published
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
    method = FIGURES[figure].methods[name]
    records = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    curves = [_curve(folder) for folder in folders]
    seeds = [record["seed"] for record in records]
    iterations = max(record["iteration"] for record in records) if method.trained else None
    changes = [f"after iteration {after} {more}" for after, more in method.then if after < (iterations or 0)]
    entry: dict[str, Any] = {
        "seeds": seeds,
        "dynamics": records[0]["dynamics"],
        "seconds": [curve["seconds"] for curve in curves],
        "machine": curves[0]["machine"],
        "commit": common([commits(config) for config in configs]),
        "command": command("reproduce", figure, name, seeds, iterations),
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
    kept = {name: seed_folders(RESULTS / figure, name) for name in methods}
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


def _compared(figure: str, name: str, entry: dict[str, Any]) -> pictures.Compared:
    published = FIGURES[figure].methods[name].published
    if not entry:
        return pictures.Compared(name, published)
    count = len(entry["seeds"])
    returns = [entry[key] for key in sorted(entry) if key.startswith("return/step_")]
    curves = [_curve(folder) for folder in seed_folders(RESULTS / figure, name)]
    training = [[curve[key] for curve in curves if curve.get(key)] for key in ("return/step_0", "return/step_1")]
    return pictures.Compared(
        name,
        published,
        label=f"{name} ({shown(entry['iterations'])} iterations, {count} seed{'s' * (count > 1)})",
        means=[value["mean"] for value in returns],
        errors=[value["standard_error"] for value in returns] if count > 1 else None,
        training=training,
        env_steps=[_env_steps(curve, entry) for curve in curves] if any(training) else (),
    )


if __name__ == "__main__":
    main()
