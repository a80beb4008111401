"""Evaluate a run on held-out tasks: `python experiments/evaluate.py RUN --steps 3 --tasks 40`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarl.core.settings import SettingError
from metarl.experiments.runner.command_line import OneLineParser
from metarl.experiments.runner.flat_settings import flat_settings, to_flat
from metarl.experiments.runner.outputs import output_folder
from metarl.experiments.runner.scripts import SCRIPT_HELP
from metarl.experiments.runner.start import experiment_of, open_run
from metarl.experiments.runner.training import evaluate_run, one_line_errors, table
from metarl.rl.evaluation import TaskEvaluation

_OF_THIS_MACHINE = ("data", "cache", "threads")
_SETTINGS = {  # flags, by the settings of the run that they replace
    "steps": "evaluation_steps",
    "tasks": "evaluation_tasks",
    "episodes": "evaluation_episodes",
    "shots": "evaluation_shots",
    "statistics": "evaluation_statistics",
    "extra_step_scale": "extra_step_scale",
    **{name: name for name in _OF_THIS_MACHINE},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Load a checkpoint, adapt it to test tasks, print and write the metric after each gradient step."""
    chosen = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors():
        given = {name: value for name in _SETTINGS if (value := getattr(chosen, name)) is not None}
        experiment = experiment_of(chosen.run, chosen.script)
        if unknown := [name for name in given if _SETTINGS[name] not in flat_settings(experiment.settings)]:
            raise SettingError(f"--{unknown[0]} means nothing in {experiment.name}; allowed: without it")
        try:
            changes = {_SETTINGS[name]: value for name, value in given.items()}
            checkpoint = "best.pt" if chosen.best else "checkpoint.pt"
            _, settings, learner = open_run(chosen.run, checkpoint, changes, chosen.script)
        except SettingError as error:
            raise SettingError(str(error).replace("--evaluation-", "--")) from None
        _check(chosen, experiment.name, to_flat(settings))
        different = [f"{name}_{value}" for name, value in given.items() if name not in _OF_THIS_MACHINE]
        usual = chosen.run / "-".join(["evaluation", *["best"] * chosen.best, *different])
        output = output_folder(chosen.output or usual)
        evaluation: Any = evaluate_run(experiment, settings, learner, output)
        num_tasks = evaluation.per_task.shape[1]
        untrained = (
            " (untrained: no later state was better in training)" if chosen.best and not learner.iteration else ""
        )
        print(f"{experiment.name} after iteration {learner.iteration}{untrained}, {num_tasks} test tasks")
        print(table(evaluation))
        if chosen.video is not None:
            from metarl.experiments.runner.videos import save_videos  # which imports the simulators

            assert isinstance(evaluation, TaskEvaluation), "_check has refused others"
            save_videos(learner, evaluation, chosen.video or range(min(2, num_tasks)), output)
        learner.close()
        print(f"results in {output}")


def _parser() -> OneLineParser:
    parser = OneLineParser("Evaluate a run on held-out tasks; what is not said is as in the run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of the run")
    add = parser.add_argument_group("what is evaluated").add_argument
    add("--best", action="store_true", help="the best iterate, by the selection metric, not the last")
    add("--steps", type=int, metavar="INT", help="gradient steps; of rl2, earlier episodes of a trial")
    add("--tasks", type=int, metavar="INT", help="test tasks")
    add("--extra-step-scale", type=float, metavar="FLOAT", help="scale of the step size after the trained steps")
    add = parser.add_argument_group("reinforcement learning").add_argument
    add("--episodes", type=int, metavar="INT", help="episodes per task and step; of rl2, trials per task")
    films = "film these test tasks before and after adaptation (default: 0 and 1); needs the extra video"
    add("--video", type=int, nargs="*", metavar="TASK", help=films)
    add = parser.add_argument_group("few-shot learning").add_argument
    add("--shots", type=int, metavar="INT", help="support examples of a class")
    of_what = "statistics of batch norm on query data: of these data, or per step of training tasks"
    add("--statistics", metavar="{batch,per-step}", help=of_what)
    add("--data", metavar="DIR", help="folder of the images")
    add("--cache", metavar="DIR", help="folder of the prepared images")
    add = parser.add_argument_group("files and machine").add_argument
    add("--output", type=Path, metavar="DIR", help="where results go (default: a folder in the run)")
    add("--script", type=Path, metavar="FILE", help=SCRIPT_HELP)
    add("--threads", type=int, metavar="INT", help="threads of physics and mathematics")
    return parser


def _check(chosen: argparse.Namespace, name: str, values: dict[str, Any]) -> None:
    """SettingError for flags that have no effect on a run with these flat values."""
    inner_steps, num_tasks = values["evaluation_steps"], values["evaluation_tasks"]
    if chosen.extra_step_scale is not None and inner_steps <= max(1, values.get("inner_steps", 0)):
        raise SettingError(f"--extra-step-scale with --steps {inner_steps}; allowed: with more steps than in training")
    if chosen.video is not None and "horizon" not in values:
        raise SettingError(f"--video means nothing in {name}; allowed: without it")
    if wrong := [task for task in chosen.video or [] if not 0 <= task < num_tasks]:
        raise SettingError(f"--video = {wrong[0]}; allowed: 0 to {num_tasks - 1}")


if __name__ == "__main__":
    main()
