"""Reproduce the paper's supervised results: `python experiments/reproduce_few_shot.py sine --seeds 0 1 2`.

For each method and seed a run is trained under runs/reproduce (continued if it was stopped), evaluated on test tasks,
and what matters of it is kept under experiments/results. `--report` makes the tables and figures from what is there.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metarl.experiments import evaluate
from metarl.experiments.runner import reproduction, training
from metarl.experiments.runner.configuration import OneLineParser
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.plots import save_json
from metarl.experiments.runner.reproduction import (
    choose,
    command,
    commits,
    common,
    folders,
    keep_curve,
    keep_summary,
    seed_folders,
    shown,
    train_run,
)
from metarl.runs import Run, load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class Method:
    """One line of a table.

    Attributes:
        flags: of the experiment's script.
        published: the paper's figure.
        shots: K of the test tasks, where they are not those of training; the first is the one that tables show.
        evaluation: flags of evaluate.py.
        run: the method whose runs are evaluated, where it is another one.
    """

    flags: str = ""
    published: str = ""
    shots: tuple[int, ...] = ()
    evaluation: str = ""
    run: str = ""


TWENTY = "--ways 20 --tasks 16 --inner-steps 5 --evaluation-steps 5"
MAML_PLUS_PLUS = (  # on a schedule of an hour of one core; five steps together are as long as the paper's one
    "--learner maml++ --tasks 16 --inner-steps 5 --inner-step-size 0.4 --evaluation-steps 5 --iterations 4000 "
    "--multi-step-iterations 800 --final-learning-rate 1e-5"
)
FIGURES = {
    "sine": {
        "maml": Method("", "0.67, 0.38, 0.35", shots=(5, 10, 20)),
        "maml, later factor 0.5": Method(
            "", "0.67, 0.38, 0.35", shots=(5, 10, 20), evaluation="--later-factor 0.5", run="maml"
        ),
        "pretrained": Method("--learner pretrained", "2.41, 2.23, 2.19", shots=(5, 10, 20)),
        "oracle": Method("--learner oracle --evaluation-steps 0", shots=(5, 10, 20)),
    },
    "omniglot": {
        "5-way 1-shot": Method("", "98.7 ± 0.4"),
        "5-way 5-shot": Method("--shots 5", "99.9 ± 0.1"),
        "20-way 1-shot": Method(TWENTY, "95.8 ± 0.3"),
        "20-way 5-shot": Method(f"{TWENTY} --shots 5", "98.9 ± 0.2"),
        "5-way 1-shot, no convolution": Method("--network mlp", "89.7 ± 1.1"),
        "5-way 5-shot, no convolution": Method("--network mlp --shots 5", "97.5 ± 0.6"),
        "5-way 1-shot, classifier": Method("--learner classifier"),
        "5-way 1-shot, MAML++": Method(MAML_PLUS_PLUS, "99.47"),
    },
    "mini_imagenet": {
        "5-way 1-shot": Method("", "48.70 ± 1.84"),
        "5-way 1-shot, first-order": Method("--learner first-order", "48.07 ± 1.75"),
        "5-way 5-shot": Method("--tasks 2 --shots 5", "63.11 ± 0.92"),
        "5-way 5-shot, first-order": Method("--tasks 2 --shots 5 --learner first-order", "63.15 ± 0.91"),
        "5-way 1-shot, classifier": Method("--learner classifier", "fine-tuned 28.86 ± 0.54, nearest 41.08 ± 0.70"),
    },
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate what is missing, then report."""
    parser = OneLineParser("Train and evaluate the methods of one of the paper's tables, or report what has been run.")
    with training.one_line_errors():
        chosen = choose(parser, FIGURES, FIGURES, arguments, ("data", "cache"))
        for name in chosen.methods:
            for seed in chosen.seeds:
                run_method(chosen.figure, name, seed, chosen.flags)
        report()


def run_method(figure: str, name: str, seed: int, flags: Sequence[str]) -> None:
    """Train, evaluate and keep one run; what is already trained is not trained again."""
    method = FIGURES[figure][name]
    directory, _ = folders(figure, method.run or name, seed)
    _, kept = folders(figure, name, seed)
    train_run(find_experiment(figure), directory, kept, seed, [*method.flags.split(), *flags])
    for shots in reversed(method.shots or (None,)):  # the first one's picture stays
        words = method.evaluation.split() + ([] if shots is None else ["--shots", str(shots)])
        evaluate.main([str(directory), *words, "--output", str(kept)])
        (kept / "adaptation.png").unlink()
        (kept / "evaluation.json").rename(kept / _evaluation(shots))
    config = Run.open(directory).config
    config["settings"] |= {name: "" for name in ("data", "cache") if name in config["settings"]}  # of this machine
    save_json(kept / "config.json", config)
    state = load_checkpoint(directory / "checkpoint.pt")
    state["config"] = config
    save_checkpoint(kept / "checkpoint.pt", state)
    lines = Run.open(directory).metrics()
    scores = [key for key in (lines[0] if lines else {}) if key.startswith(("mse/", "accuracy/"))]
    seconds = [config["settings"]["record_every"] / line["iterations_per_second"] for line in lines]
    keep_curve(kept, lines, ["iteration", *scores], seconds)


def report() -> None:
    """Write summary.json, a figure for sine, and tables in Markdown, from the results that are kept."""
    summary: dict[str, dict[str, Any]] = {}
    for figure, methods in FIGURES.items():
        for name in methods:
            if folders := seed_folders(figure, name):
                summary.setdefault(figure, {})[name] = _summarise(figure, name, folders)
    keep_summary(summary)
    for figure, methods in summary.items():
        if figure == "sine":
            _draw(methods).savefig(reproduction.RESULTS / figure / "adaptation.png", dpi=120)
        print(table(figure, methods))


def table(figure: str, methods: dict[str, Any]) -> str:
    """A Markdown table: mean over seeds, with half of the 95 % interval over tasks, or the s.e. over several seeds."""
    steps = (0, 1, 5, 10) if figure == "sine" else (0, 1, 3, 5)
    score, scale = ("mse", 1) if figure == "sine" else ("accuracy", 100)
    rows = [
        f"| {figure} | {' | '.join(f'{n} step' + 's' * (n != 1) for n in steps)} | iterations | seeds | published |",
        "|---" * (len(steps) + 4) + "|",
    ]
    for name, entry in methods.items():
        published, seeds = FIGURES[figure][name].published, len(entry["seeds"])
        for prefix in ("", *sorted({key.split("/")[0] + "/" for key in entry if key.startswith("shots_")})):
            cells = [_cell(entry.get(f"{prefix}{score}/step_{step}"), scale) for step in steps]
            shots = prefix[6:-1] or ", ".join(map(str, FIGURES[figure][name].shots[:1]))
            label = f"{name}, K = {shots}" if shots else name
            published = "" if prefix else published
            rows.append(f"| {label} | {' | '.join(cells)} | {shown(entry['iterations'])} | {seeds} | {published} |")
        if nearest := entry.get(f"{score}/nearest_neighbour"):
            iterations = shown(entry["iterations"])
            rows.append(f"| {name}, nearest neighbour | {_cell(nearest, scale)} |  |  |  | {iterations} | {seeds} |  |")
    return "\n".join(rows) + "\n"


def _cell(entry: dict[str, Any] | None, scale: float) -> str:
    if entry is None:
        return ""
    if entry["mean"] is None or entry["mean"] > 1e3:
        return "diverged"
    error = entry["standard_error"] if len(entry["per_seed"]) > 1 else entry["interval_95"]
    digits = 3 if scale == 1 else 1
    return f"{scale * entry['mean']:.{digits}f} ± {scale * error:.{digits}f}"


def _summarise(figure: str, name: str, folders: Sequence[Path]) -> dict[str, Any]:
    method = FIGURES[figure][name]
    curves = [json.loads((folder / "curve.json").read_text()) for folder in folders]
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    entry: dict[str, Any] = {
        "seconds": [curve["seconds"] for curve in curves],
        "machine": curves[0]["machine"],
        "commit": common([commits(config) for config in configs]),
        "flags": f"{method.flags} (evaluated with {method.evaluation})" if method.evaluation else method.flags,
    }
    for shots in method.shots or (None,):
        records = [json.loads((folder / _evaluation(shots)).read_text()) for folder in folders]
        if shots == (method.shots or (None,))[0]:
            entry["seeds"] = [record["seed"] for record in records]
            entry["iterations"] = common([record["iteration"] for record in records])
            entry["shots"], entry["evaluation_tasks"] = records[0]["shots"], records[0]["evaluation_tasks"]
            prefix = ""
            iterations = [record["iteration"] for record in records]
            entry["command"] = command("reproduce_few_shot", figure, name, entry["seeds"], iterations)
        else:
            prefix = f"shots_{shots}/"
        for key, value in records[0].items():
            if isinstance(value, dict):
                entry[prefix + key] = _over_seeds([record[key] for record in records])
    return entry


def _over_seeds(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard error over seeds; None where a task diverged, of which the count and the median tell more."""
    tasks = np.array([[math.inf if value is None else value for value in record["per_task"]] for record in records])
    means = tasks.mean(axis=1)
    intervals = [record["interval_95"] for record in records]
    finite = bool(np.isfinite(means).all())
    return {
        "mean": round(float(means.mean()), 5) if finite else None,
        "standard_error": _rounded(means.std(ddof=1) / len(means) ** 0.5) if finite and len(means) > 1 else None,
        "interval_95": _rounded(np.mean(intervals)) if None not in intervals else None,
        "per_seed": [_rounded(mean) for mean in means],
        "median": _rounded(np.median(tasks)),
        "diverged_tasks": int((~(tasks < 1e3)).sum()),
    }


def _rounded(value: Any) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None


def _draw(methods: dict[str, Any]) -> Figure:
    """Error against gradient steps for K = 5, 10, 20, as in the paper's figure 3."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (prefix, shots) in zip(panels, (("", 5), ("shots_10/", 10), ("shots_20/", 20)), strict=True):
        for index, (name, entry) in enumerate(methods.items()):
            steps = [step for step in range(11) if f"{prefix}mse/step_{step}" in entry]
            for which, style in (("mean", "-"), ("median", "--")):
                values = [entry[f"{prefix}mse/step_{step}"][which] for step in steps]
                label = name if which == "mean" else None
                if len(steps) == 1:
                    axes.axhline(values[0], color=f"C{index}", linestyle=style, label=label)
                else:
                    axes.plot(steps, values, style, color=f"C{index}", marker=".", label=label)
        axes.set(xlabel="gradient steps", title=f"K = {shots}", yscale="log")
    panels[0].set_ylabel("mean squared error (dashed: median)")
    panels[0].legend()
    return figure


def _evaluation(shots: int | None) -> str:
    return "evaluation.json" if shots is None else f"evaluation_{shots}_shots.json"


if __name__ == "__main__":
    main()
