"""Evaluate a run on held-out tasks: `python experiments/evaluate.py RUN --steps 3 --tasks 40`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from metarl.experiments.runner.configuration import OneLineParser, SettingError, output_folder
from metarl.experiments.runner.starting import open_run
from metarl.experiments.runner.training import evaluate_run, one_line_errors, table
from metarl.experiments.runner.videos import save_videos


def main(arguments: Sequence[str] | None = None) -> None:
    """Load a checkpoint, adapt it to test tasks, print and write the returns after each gradient step."""
    parser = OneLineParser("Evaluate a run on held-out tasks.")
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of the run")
    parser.add_argument("--steps", type=int, metavar="INT", help="gradient steps (default: the run's evaluation_steps)")
    parser.add_argument("--tasks", type=int, metavar="INT", help="test tasks (default: the run's evaluation_tasks)")
    parser.add_argument("--episodes", type=int, metavar="INT", help="per task and step (default: the run's)")
    parser.add_argument(
        "--later-factor",
        type=float,
        metavar="FLOAT",
        help="of the step size after the trained steps (default: the run's)",
    )
    parser.add_argument("--shots", type=int, metavar="INT", help="few-shot: support examples (default: the run's)")
    parser.add_argument(
        "--statistics",
        metavar="STR",
        help="few-shot: batch norm's on query data, batch or per-step (default: the run's)",
    )
    parser.add_argument("--data", metavar="DIR", help="few-shot: folder of the images (default: the run's)")
    parser.add_argument("--cache", metavar="DIR", help="few-shot: folder of the prepared images (default: the run's)")
    parser.add_argument(
        "--best", action="store_true", help="the best iterate, by training return or validation, not the last one"
    )
    parser.add_argument(
        "--video", type=int, nargs="*", metavar="TASK", help="film these test tasks before and after (default: 0 and 1)"
    )
    parser.add_argument("--threads", type=int, metavar="INT", help="of physics and mathematics (default: the run's)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where results go (default: a folder in the run)")
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors():
        names = {name: f"evaluation_{name}" for name in ("steps", "tasks", "episodes", "shots", "statistics")}
        of_this_machine = ("data", "cache", "threads")
        names |= {name: name for name in ("later_factor", *of_this_machine)}
        given = {name: value for name in names if (value := getattr(chosen, name)) is not None}
        changes = {names[name]: value for name, value in given.items()}
        experiment, settings, learner = open_run(chosen.run, "best.pt" if chosen.best else "checkpoint.pt", changes)
        if chosen.later_factor is not None and settings.evaluation_steps <= max(1, learner.rule.steps):
            steps = settings.evaluation_steps
            raise SettingError(f"--later-factor with --steps {steps}; allowed: with more steps than in training")
        if chosen.video is not None and not hasattr(settings, "horizon"):
            raise SettingError(f"--video means nothing in {experiment.name}; allowed: without it")
        if wrong := [task for task in chosen.video or [] if not 0 <= task < settings.evaluation_tasks]:
            raise SettingError(f"--video = {wrong[0]}; allowed: 0 to {settings.evaluation_tasks - 1}")
        differs = ["best"] * chosen.best + [f"{k}_{v}" for k, v in given.items() if k not in of_this_machine]
        output = output_folder(chosen.output or chosen.run / "-".join(["evaluation", *differs]))
        evaluation = evaluate_run(experiment, settings, learner, output)
        print(f"{experiment.name} after iteration {learner.iteration}, {settings.evaluation_tasks} test tasks")
        print(table(evaluation))
        if chosen.video is not None:
            save_videos(learner, evaluation, chosen.video or range(min(2, settings.evaluation_tasks)), output)
        print(f"results in {output}")


if __name__ == "__main__":
    main()
