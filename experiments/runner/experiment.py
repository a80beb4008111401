"""What an experiment script stands for: its settings, its learner, what training and evaluation do with it."""

import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch

import metarl
from metarl.experiments.runner.settings import Settings
from metarl.rl.evaluation import evaluate, held_out_tasks
from metarl.runs import RunError


@dataclass(frozen=True)
class Experiment:
    """What one script stands for. The methods say what training does in reinforcement learning.

    Attributes:
        name: of the script, and of the runs it makes.
        settings: its configuration class.
        build: makes the learner.
        figures: pictures of its own, by name, made from an evaluation.
        merit_of_start: whether `merit` is that of the meta-parameters that an iteration begins with, as returns in
            training are, and not of those that it ends with.
    """

    merit_of_start: ClassVar[bool] = True

    name: str
    settings: type[Any]
    build: Callable[[Any], Any]
    figures: Callable[[Any], dict[str, Any]] = lambda evaluation: {}

    def check_continuable(self, learner: Any) -> None:
        """RunError if a learner's state, as it was loaded, is enough to evaluate it but not to train on."""

    def advance(self, settings: Any, learner: Any) -> dict[str, float]:
        """Train up to the next record, and return its figures."""
        started, steps_before = time.perf_counter(), learner.env_steps
        figures = step(settings, learner)
        seconds = time.perf_counter() - started
        failed, episodes = int(figures["failed_episodes"]), int(figures["episodes"])
        said = f"{failed} of {episodes} episodes of iteration {learner.iteration}"
        _check_failures(failed / episodes, said, settings)
        figures["steps_per_second"] = (learner.env_steps - steps_before) / seconds
        return figures

    def merit(self, settings: Any, figures: dict[str, float]) -> float:
        """What the best iterate has most of."""
        return figures[f"return/step_{settings.inner_steps}"]

    def shown(self, settings: Any, figures: dict[str, float]) -> str:
        """What the progress bar shows."""
        failed = f", {figures['failed_episodes']:.0f} episodes blew up" if figures["failed_episodes"] else ""
        after, speed = self.merit(settings, figures), figures["steps_per_second"]
        return f"return {figures['return/step_0']:.1f} -> {after:.1f}, {speed:,.0f} steps/s" + failed

    def evaluate(self, settings: Any, learner: Any, split: str) -> Any:
        """Performance after each gradient step; `validation` while training, `test` at its end: here the same tasks."""
        tasks = held_out_tasks(learner, settings.evaluation_tasks)
        evaluation = evaluate(learner, settings.evaluation_steps, tasks, settings.evaluation_episodes)
        share = float(evaluation.failures.mean())
        _check_failures(share, f"{share:.1%} of the episodes of an evaluation", settings)
        return evaluation

    def record(self, settings: Any, learner: Any) -> dict[str, Any]:
        """What the evaluation's file says of the run."""
        return {
            "dynamics": learner.distribution.dynamics,
            "seed": settings.seed,
            "iteration": learner.iteration,
            "env_steps": learner.env_steps,
            "episodes_per_step": settings.evaluation_episodes,
            "inner_step_size": settings.inner_step_size,
            "later_factor": settings.later_factor,
        }


def find_experiment(name: str) -> Experiment:
    """The experiment of a script in this folder; RunError if there is none of that name."""
    try:
        module: ModuleType = importlib.import_module(f"experiments.{name}")
        return module.EXPERIMENT
    except (ModuleNotFoundError, AttributeError) as error:
        raise RunError(f"experiment {name!r} is not known to this version of metarl") from error


class DeviceMemoryError(RuntimeError):
    """The device has too little memory; the message says which setting to lower."""


def step(settings: Any, learner: Any) -> dict[str, float]:
    """One meta-iteration; where the device lacks memory, again in smaller chunks if the settings allow it.

    An iteration that failed has changed nothing, and samples the same episodes again.
    """
    while True:
        try:
            return learner.step()
        except torch.OutOfMemoryError as error:
            own = learner.processes.share(learner.tasks)
            chunk = min(learner.task_chunk or learner.tasks, own.stop - own.start)
            smaller = "--task-chunk, --tasks" if chunk > 1 else "--tasks"
            if chunk == 1 or not settings.shrink_chunks:
                raise DeviceMemoryError(
                    f"{learner.device} is out of memory with {chunk} tasks at a time; lower {smaller} or the network"
                ) from error
            learner.task_chunk = (chunk + 1) // 2
        torch.cuda.empty_cache()
        print(f"{learner.device} is out of memory; now {learner.task_chunk} tasks at a time", file=sys.stderr)


def _check_failures(share: float, said: str, settings: Settings) -> None:
    if share > settings.max_failed:
        raise metarl.SimulationError(f"{said} blew up; allowed: a share of {settings.max_failed:g} (--max-failed)")
