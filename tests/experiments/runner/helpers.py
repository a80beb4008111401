"""Small runs of navigation, and what tests look at in their directories."""

import json
from pathlib import Path

import pytest
import torch

from metarl.experiments import navigation_2d
from metarl.experiments.runner.training import main
from metarl.rl.learner import Learner
from metarl.runs import load_checkpoint

ROOT = Path(__file__).parents[3]
SIZES = {
    "iterations": 2,
    "num-tasks": 3,
    "episodes-per-task": 4,
    "horizon": 8,
    "hidden-sizes": 6,
    "evaluate-every": 0,
    "evaluation-tasks": 4,
    "evaluation-episodes": 3,
    "evaluation-steps": 2,
    "threads": 1,
}
TINY = ["--recipe", "paper", *(word for name, size in SIZES.items() for word in (f"--{name}", str(size)))]


def error_of(capsys, call, *arguments, status=2):
    """The one line on stderr of a call that must end with this status."""
    capsys.readouterr()  # what was said before
    with pytest.raises(SystemExit) as leaving:
        call(*arguments)
    assert leaving.value.code == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def train(*arguments, evaluated=False):
    """A tiny run of navigation, in this process; the evaluation at its end takes longer than the run."""
    main(navigation_2d.EXPERIMENT, [*TINY, *map(str, arguments)], evaluated)


def resume(directory, *arguments, evaluated=False):
    """Continue a run of navigation, in this process."""
    main(navigation_2d.EXPERIMENT, ["--resume", str(directory), *map(str, arguments)], evaluated)


def before_iteration(iteration, happens, monkeypatch):
    """Patch the learner so that something happens to it just before it takes an iteration."""
    step = Learner.step

    def eventful_step(learner):
        if learner.iteration == iteration:
            happens(learner)
        return step(learner)

    monkeypatch.setattr(Learner, "step", eventful_step)


def timeless_metrics(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def state_of(directory, name="checkpoint.pt"):
    return load_checkpoint(directory / name)["learner"]


def parameters(directory, name="checkpoint.pt"):
    return state_of(directory, name)["theta"]


def assert_same_parameters(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def assert_same_run(a, b):
    """The same metrics, last state and best state."""
    assert timeless_metrics(a) == timeless_metrics(b)
    assert_same_parameters(parameters(a), parameters(b))
    assert_same_parameters(parameters(a, "best.pt"), parameters(b, "best.pt"))
    best, other = (load_checkpoint(run / "best.pt") for run in (a, b))
    assert best["progress"] == other["progress"]
