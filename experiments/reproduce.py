"""Reproduce the paper's reinforcement-learning figures: `python experiments/reproduce.py navigation_2d --seeds 0 1 2`.

`--methods 'maml, lvc' first-order ProMP DiCE E-MAML Meta-SGD ANIL` runs other meta-learners beside `maml`, at equal
environment steps, and `--methods 'exact products'` runs `maml` with Hessian products from all samples. For each method
and seed a run is trained under runs/reproduce (continued if it was stopped), evaluated, and what matters of it is kept
under experiments/results. What is kept can be continued where the runs are not: copy its folder to the same place under
runs/reproduce first. `--report` makes the tables and figures from what is there.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from metarl.experiments import evaluate
from metarl.experiments.runner import recipes, training
from metarl.experiments.runner.configuration import OneLineParser
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.report import report
from metarl.experiments.runner.reproduction import choose, folders, keep_curve, train_run
from metarl.runs import Run, load_checkpoint


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate what is missing, then report."""
    parser = OneLineParser("Train and evaluate the methods of one of the paper's figures, or report what has been run.")
    known = {figure: recipe.methods for figure, recipe in recipes.FIGURES.items()}
    usual = {figure: recipe.paper for figure, recipe in recipes.FIGURES.items()}
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
    method, experiment = recipes.FIGURES[figure].methods[name], find_experiment(figure)
    directory, kept = folders(figure, name, seed)
    train_run(experiment, directory, kept, seed, [*method.flags.split(), *flags], method.trained, method.then)
    keep_run(figure, name, seed)


def keep_run(figure: str, name: str, seed: int) -> None:
    """Evaluate a run as far as it has come, and keep what matters of it."""
    directory, kept = folders(figure, name, seed)
    kept.mkdir(parents=True, exist_ok=True)
    _evaluate_once(directory, [], kept / "evaluation.json")
    if seed == 0 and (directory / "paths.png").exists():  # one picture of the paths is enough
        shutil.copy(directory / "paths.png", kept / "paths.png")
    if (directory / "best.pt").exists():  # else what is kept, and was continued, has the best one's evaluation
        _evaluate_once(directory, ["--best"], kept / "best_evaluation.json")
        shutil.copy(directory / "best.pt", kept / "best.pt")
    for file in ("config.json", "checkpoint.pt"):
        shutil.copy(directory / file, kept / file)
    lines = Run(directory).metrics()
    keys = [key for key in (lines[0] if lines else {}) if "return/" in key or key == "env_steps"]
    seconds = [sum(line[f"seconds/{part}"] for part in ("rollout", "adapt", "update")) for line in lines]
    keep_curve(kept, lines, keys, seconds)


def _evaluate_once(directory: Path, flags: list[str], kept: Path) -> None:
    """Keep the evaluation of a checkpoint; the run may hold it already, and what is kept may be that."""
    iteration = load_checkpoint(directory / ("best.pt" if flags else "checkpoint.pt"))["learner"]["iteration"]
    made = directory / ("evaluation-best" if flags else "") / "evaluation.json"
    if not made.exists() or json.loads(made.read_text())["iteration"] != iteration:
        evaluate.main([str(directory), *flags, "--output", str(made.parent)])
    shutil.copy(made, kept)


if __name__ == "__main__":
    main()
