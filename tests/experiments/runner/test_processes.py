"""torchrun: several processes make the run that one makes, and what happens to one of them happens to all."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metarl.experiments import navigation_2d
from metarl.experiments.runner.training import main
from tests.experiments.runner.helpers import ROOT, TINY, assert_same_parameters, parameters, state_of, timeless_metrics

WHOLE_RUN = """
import sys
from metarl.experiments import navigation_2d
from metarl.experiments.runner import training
training.main(navigation_2d.EXPERIMENT, sys.argv[1:])
"""
RAISING = """
import os, sys
from metarl.experiments import navigation_2d
from metarl.experiments.runner import training
from metarl import Learner, NonFiniteError
step = Learner.step
def broken(learner):
    if learner.iteration == 2 and os.environ["RANK"] == "1":
        raise NonFiniteError("reward is not finite in train/step_0 of iteration 2: task 2")
    return step(learner)
Learner.step = broken
training.main(navigation_2d.EXPERIMENT, sys.argv[1:])
"""
DIFFERING = """
import os, sys
from metarl.experiments import navigation_2d
from metarl.experiments.runner import training
training.main(navigation_2d.EXPERIMENT, [*sys.argv[1:], "--seed", os.environ["RANK"]])
"""


def torchrun(tmp_path, size, script, *arguments):
    """Start a script in several processes; stdout and stderr in one pipe."""
    path = tmp_path / "script.py"
    path.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", str(path)]
    return subprocess.Popen(
        [*command, *TINY, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def errors_of(output):
    return [line.removeprefix("error: ") for line in output.splitlines() if line.startswith("error: ")]


def wait_for(condition, seconds=120):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        time.sleep(0.05)


def done(directory):
    path = directory / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "alone"
    main(navigation_2d.EXPERIMENT, [*TINY, "--iterations", "4", "--evaluate-every", "2", "--run-dir", str(directory)])
    return directory


def assert_same_run(directory, alone):
    for mine, other in zip(timeless_metrics(alone), timeless_metrics(directory), strict=True):
        assert other == pytest.approx(mine, rel=1e-6, abs=1e-12)
    assert_same_parameters(parameters(directory), parameters(alone))
    records = [json.loads((path / "evaluation.json").read_text()) for path in (alone, directory)]
    assert records[0] == records[1]


def test_a_process_that_is_killed_ends_the_run_and_one_process_continues_it_exactly(tmp_path):
    directory, flags = tmp_path / "run", ["--evaluate-every", "2", "--run-dir"]
    with torchrun(tmp_path, 2, WHOLE_RUN, "--iterations", 100_000, *flags, directory) as running:
        wait_for(lambda: done(directory) >= 2)
        os.kill(children_of(running.pid)[1], signal.SIGKILL)
        killed = time.monotonic()
        output, _ = running.communicate(timeout=60)
    assert time.monotonic() - killed < 20
    assert running.returncode != 0
    assert "SIGKILL" in output
    assert "2 processes x 1 threads" in output
    reached = state_of(directory)["iteration"]
    assert reached <= done(directory) <= reached + 1
    last = ["--iterations", str(reached + 2)]
    main(navigation_2d.EXPERIMENT, ["--resume", str(directory), *last])
    main(navigation_2d.EXPERIMENT, [*TINY, *last, *flags, str(tmp_path / "alone")])
    assert_same_run(directory, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_processes_make_the_run_that_one_makes(size, alone, tmp_path):
    directory = tmp_path / "run"
    with torchrun(tmp_path, size, WHOLE_RUN, "--iterations", 2, "--evaluate-every", 2, "--run-dir", directory) as run:
        run.communicate(timeout=200)
    with torchrun(
        tmp_path, 5 - size, WHOLE_RUN, "--resume", directory, "--iterations", 4, "--evaluate-every", 2
    ) as run:
        run.communicate(timeout=200)
    assert_same_run(directory, alone)


def test_an_error_in_one_process_is_shown_and_ends_all(tmp_path):
    directory = tmp_path / "run"
    with torchrun(tmp_path, 2, RAISING, "--iterations", 5, "--run-dir", directory) as running:
        output, _ = running.communicate(timeout=120)
    assert running.returncode != 0
    line = "reward is not finite in train/step_0 of iteration 2: task 2; the last checkpoint is as it was"
    assert errors_of(output) == [line]
    assert state_of(directory)["iteration"] == 2


@pytest.mark.slow
def test_processes_with_different_settings_are_refused_in_one_line(tmp_path):
    directory = tmp_path / "run"
    with torchrun(tmp_path, 2, DIFFERING, "--run-dir", directory) as running:
        output, _ = running.communicate(timeout=120)
    assert errors_of(output) == ["--seed = 1 in process 1, 0 in process 0; allowed: the same in all"]
    assert not directory.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--iteratoins 3", "unknown argument --iteratoins; the nearest is --iterations; --help lists all"),
        ("--num-tasks 1", "--num-tasks = 1 on 2 processes; allowed: at least one task on each"),
        ("--evaluation-tasks 1", "--evaluation-tasks = 1 on 2 processes; allowed: at least one task on each"),
        ("--shrink-chunks", "--shrink-chunks on 2 processes; allowed: --task-chunk"),
    ],
)
def test_bad_input_gets_one_line_from_all_processes_together(arguments, line, tmp_path):
    directory = tmp_path / "run"
    with torchrun(tmp_path, 2, WHOLE_RUN, "--run-dir", directory, *arguments.split()) as running:
        output, _ = running.communicate(timeout=120)
    assert errors_of(output) == [line]
    assert not directory.exists()


@pytest.mark.slow
def test_an_interrupt_ends_the_iteration_in_all_processes_and_saves_it(tmp_path):
    directory = tmp_path / "run"
    with torchrun(tmp_path, 2, WHOLE_RUN, "--iterations", 100_000, "--run-dir", directory) as running:
        wait_for(lambda: done(directory) >= 2)
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=60)
    assert "stopped after iteration" in output
    assert output.count("stopping as soon as this iteration is recorded") == 1
    assert state_of(directory)["iteration"] == done(directory)
