"""Adapt a run's policy to one task: `python experiments/adapt.py RUN --task '{"velocity": 1.3}' --steps 3`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import metarl
from metarl.core.settings import SettingError
from metarl.experiments.runner.command_line import OneLineParser
from metarl.experiments.runner.outputs import output_file
from metarl.experiments.runner.scripts import SCRIPT_HELP
from metarl.experiments.runner.start import open_run
from metarl.experiments.runner.training import one_line_errors
from metarl.rl.task_distribution import Tasks


def main(arguments: Sequence[str] | None = None) -> None:
    """Load a checkpoint, adapt to the task, print the return after each gradient step, save the adapted policy."""
    parser = OneLineParser("Adapt a run's policy to one task, and save it for acting.")
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of the run")
    parser.add_argument("--task", required=True, metavar="JSON", help='parameters of the task, such as {"velocity": 1}')
    parser.add_argument("--steps", type=int, metavar="INT", help="gradient steps (default: the run's evaluation_steps)")
    parser.add_argument("--episodes", type=int, metavar="INT", help="per step (default: the run's training episodes)")
    parser.add_argument("--best", action="store_true", help="the best iterate by return in training, not the last one")
    parser.add_argument("--output", type=Path, metavar="FILE", help="of the adapted policy (default: RUN/adapted.pt)")
    parser.add_argument("--script", type=Path, metavar="FILE", help=SCRIPT_HELP)
    parser.add_argument("--threads", type=int, metavar="INT", help="threads of physics and mathematics")
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors():
        checkpoint = "best.pt" if chosen.best else "checkpoint.pt"
        changes = {} if chosen.threads is None else {"threads": chosen.threads}
        experiment, settings, learner = open_run(chosen.run, checkpoint, changes, script=chosen.script)
        if isinstance(learner, metarl.RL2Learner):
            raise SettingError(
                f"{chosen.run} is of rl2, which adapts by remembering while it acts, so there is no adapted policy; "
                "allowed: a run with --method maml"
            )
        if not isinstance(learner, metarl.Learner):
            raise SettingError(f"{experiment.name} has no tasks to act in; allowed: a reinforcement-learning run")
        tasks = read_task(chosen.task, learner.task_distribution)
        for name, value, least in (("steps", chosen.steps, 0), ("episodes", chosen.episodes, 1)):
            if value is not None and value < least:
                raise SettingError(f"--{name} = {value}; allowed: at least {least}")
        output = output_file(chosen.output, chosen.run / "adapted.pt")
        inner_steps = settings.evaluation.inner_steps if chosen.steps is None else chosen.steps
        with learner:
            path = learner.adapt(tasks, inner_steps, chosen.episodes)
        for step, adapted in enumerate(path):
            returns = adapted.episodes.returns
            print(f"{step} gradient steps: return {returns.mean():.2f}, mean of {returns.numel()} episodes")
        learner.agent(path[-1]).save(output)
    print(f"adapted policy in {output}; agent = metarl.Agent.load({str(output)!r}); action = agent(observation)")


def read_task(text: str, distribution: Any) -> Tasks:
    """One task from JSON, as arrays (1, ...); SettingError for one that does not fit the distribution."""
    from metarl.envs import check_tasks  # imported here: the package imports the simulators

    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"--task = {text}; allowed: JSON, such as {_example(distribution)}") from error
    if not isinstance(values, dict):
        raise SettingError(f"--task = {text}; allowed: a JSON object, such as {_example(distribution)}")
    try:
        tasks = {name: np.asarray([value], np.float64) for name, value in values.items()}
        check_tasks(tasks, distribution.task_space)
    except (TypeError, ValueError, OverflowError) as error:
        raise SettingError(f"--task = {text}: {error}; for example {_example(distribution)}") from error
    return tasks


def _example(distribution: Any) -> str:
    values = {
        name: np.where(np.isfinite(space.high), space.high, 0.0) for name, space in distribution.task_space.items()
    }
    return json.dumps({name: value.tolist() for name, value in values.items()})


if __name__ == "__main__":
    main()
