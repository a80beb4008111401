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
from metarl.rl.evaluation import TaskEvaluation
from metarl.rl.task_distribution import Tasks


def main(arguments: Sequence[str] | None = None) -> None:
    """Load a checkpoint, adapt to the task, print the return after each step, save the adapted policy."""
    parser = OneLineParser("Adapt a run's policy to one task, and save it for acting.")
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="directory of the run")
    add("--task", required=True, metavar="JSON", help='parameters of the task, such as {"velocity": 1}')
    steps = "gradient steps; of rl2, earlier episodes of a trial (default: the run's evaluation_steps)"
    add("--steps", type=int, metavar="INT", help=steps)
    episodes = "per step (default: the run's training episodes); of rl2, trials (default: 1)"
    add("--episodes", type=int, metavar="INT", help=episodes)
    add("--best", action="store_true", help="the best iterate by return in training, not the last one")
    add("--output", type=Path, metavar="FILE", help="of the adapted policy (default: RUN/adapted.pt)")
    add("--script", type=Path, metavar="FILE", help=SCRIPT_HELP)
    add("--threads", type=int, metavar="INT", help="threads of physics and mathematics")
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors():
        checkpoint = "best.pt" if chosen.best else "checkpoint.pt"
        changes = {} if chosen.threads is None else {"threads": chosen.threads}
        experiment, settings, learner = open_run(chosen.run, checkpoint, changes, script=chosen.script)
        if not isinstance(learner, metarl.Learner | metarl.RL2Learner):
            raise SettingError(f"{experiment.name} has no tasks to act in; allowed: a reinforcement-learning run")
        tasks = read_task(chosen.task, learner.task_distribution)
        for name, value, least in (("steps", chosen.steps, 0), ("episodes", chosen.episodes, 1)):
            if value is not None and value < least:
                raise SettingError(f"--{name} = {value}; allowed: at least {least}")
        output = output_file(chosen.output, chosen.run / "adapted.pt")
        inner_steps = settings.evaluation.inner_steps if chosen.steps is None else chosen.steps
        with learner:
            if isinstance(learner, metarl.RL2Learner):
                evaluation: TaskEvaluation = learner.evaluate(tasks, inner_steps + 1, chosen.episodes or 1)
            else:
                evaluation = learner.evaluate(tasks, inner_steps, chosen.episodes)
            for step, at in enumerate(evaluation.path):
                returns = at.episodes.returns
                print(f"{step} {evaluation.step_name}: return {returns.mean():.2f}, mean of {returns.numel()} episodes")
            agent = learner.agent(evaluation.path[-1])
        agent.save(output)
    loaded = f"metarl.{type(agent).__name__}.load({str(output)!r})"
    print(f"adapted policy in {output}; agent = {loaded}; action = agent(observation)")


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
