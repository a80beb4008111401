"""Runs that were stopped continue exactly, whatever stopped them; what must not change is compared."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl.experiments import evaluate, navigation_2d, open_run
from metarl.runs import Run, RunError, load_checkpoint, save_checkpoint
from tests.experiments.runner.helpers import (
    ROOT,
    TINY,
    assert_same_parameters,
    assert_same_run,
    before_iteration,
    error_of,
    parameters,
    resume,
    state_of,
    timeless_metrics,
    train,
)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "unbroken"
    train("--iterations", 6, "--evaluate-every", 3, "--run-dir", directory)
    return directory


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_stopped_and_resumed_equals_never_stopped(unbroken, tmp_path, stop):
    directory = tmp_path / "run"
    train("--iterations", stop, "--evaluate-every", 3, "--run-dir", directory)
    resume(directory, "--iterations", 6)
    assert_same_run(directory, unbroken)
    assert Run.open(directory).config["settings"]["run"]["iterations"] == 6


def test_resuming_forgets_iterations_after_the_checkpoint(unbroken, tmp_path):
    directory, early = tmp_path / "run", tmp_path / "early"
    train("--iterations", 4, "--evaluate-every", 3, "--run-dir", directory)
    train("--iterations", 2, "--evaluate-every", 3, "--run-dir", early)
    (directory / "checkpoint.pt").write_bytes((early / "checkpoint.pt").read_bytes())
    resume(directory, "--iterations", 6)
    assert_same_run(directory, unbroken)
    scalars = EventAccumulator(str(directory)).Reload().Scalars("return/step_1")
    assert [scalar.step for scalar in scalars] == [1, 2, 3, 4, 5, 6]


def test_milestones_do_what_resuming_with_another_step_size_did(tmp_path):
    """A milestone k holds from the iteration on that starts after k iterations, in a run that is resumed there too."""
    schedule = ["--inner-step-size-milestones", 2, 3, "--milestone-step-sizes", 0.2, 0.1]
    train("--iterations", 5, *schedule, "--run-dir", tmp_path / "whole")
    train("--iterations", 2, *schedule, "--run-dir", tmp_path / "parts")
    resume(tmp_path / "parts", "--iterations", 5)
    experiment, state = navigation_2d.EXPERIMENT, None
    sizes = {"num_tasks": 3, "episodes_per_task": 4, "horizon": 8, "hidden_sizes": (6,), "threads": 1}
    for iterations, step_size in ((2, 0.5), (1, 0.2), (2, 0.1)):
        learner = experiment.build(experiment.configure("paper", inner_step_size=step_size, **sizes))
        if state is not None:
            learner.load_state_dict(state)
        for _ in range(iterations):
            learner.step()
        state = learner.state_dict()
    assert_same_parameters(parameters(tmp_path / "whole"), learner.theta)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_remembers_which_versions_made_it(tmp_path, monkeypatch):
    versions = iter(["old", "old", "new", "new", "newer"])
    monkeypatch.setattr("metarl.experiments.runner.config_file.commit", lambda: next(versions))
    monkeypatch.setattr("metarl.experiments.runner.start.commit", lambda: next(versions))
    train("--iterations", 1, "--run-dir", tmp_path / "run")
    for iterations in range(2, 6):
        resume(tmp_path / "run", "--iterations", iterations)
    config = Run.open(tmp_path / "run").config
    assert config["commit"] == "old"
    assert config["resumed"] == [{"iteration": 2, "commit": "new"}, {"iteration": 4, "commit": "newer"}]


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["--seed", 5], "--seed = 5 cannot change in a resumed run; allowed: 0"),
        (["--hidden-sizes", 9], "--hidden-sizes = (9,) cannot change in a resumed run; allowed: (6,)"),
        (["--inner-step-size", 0.2], "--inner-step-size = 0.2 cannot change in a resumed run; allowed: 0.5"),
        (["--adaptation", "anil"], "--adaptation = anil cannot change in a resumed run; allowed: maml"),
        (["--outer", "adam"], "--outer = adam cannot change in a resumed run; allowed: trpo"),
        (["--iterations", 6], "--iterations = 6; allowed: more than the 6 already done (to evaluate them: metarl"),
    ],
)
def test_what_cannot_change_does_not(unbroken, capsys, arguments, start):
    before = (unbroken / "metrics.jsonl").read_bytes(), (unbroken / "config.json").read_bytes()
    line = error_of(capsys, resume, unbroken, "--iterations", 9, *arguments)
    assert line.startswith(f"error: {start}")
    assert ((unbroken / "metrics.jsonl").read_bytes(), (unbroken / "config.json").read_bytes()) == before


def test_what_may_change_does(tmp_path):
    train("--iterations", 1, "--run-dir", tmp_path / "run")
    resume(tmp_path / "run", "--iterations", 2, "--evaluation-tasks", 7, "--extra-step-scale", 0.25, "--task-chunk", 1)
    _, settings, learner = open_run(tmp_path / "run")
    assert (settings.evaluation.num_tasks, learner.rule.extra_step_scale, learner.task_chunk) == (7, 0.25, 1)


@pytest.fixture
def copy_of(tmp_path, unbroken):
    """A copy of the run, whose config.json a function may edit."""

    def copied(edit):
        directory = tmp_path / "copy"
        directory.mkdir()
        for path in unbroken.glob("*.*"):
            if path.is_file() and not path.name.startswith("events"):
                (directory / path.name).write_bytes(path.read_bytes())
        config = json.loads((directory / "config.json").read_text())
        edit(config)
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    return copied


@pytest.mark.parametrize(
    ("edit", "end"),
    [
        (lambda settings: settings["advantages"].update(discount=0.5), "discount = 0.5; allowed: 0.99"),
        (lambda settings: settings["sampling"].pop("num_tasks"), "num_tasks is missing; allowed: 3"),
        (lambda settings: settings["rule"].update(variant="anil"), "adaptation = 'anil'; allowed: 'maml'"),
        (lambda settings: settings.pop("environment"), "horizon is missing; allowed: 8"),
    ],
)
def test_an_edited_config_is_refused(copy_of, capsys, edit, end):
    directory = copy_of(lambda config: edit(config["settings"]))
    line = error_of(capsys, resume, directory, "--iterations", 9)
    assert line == f"error: {directory / 'config.json'}: {end}, as in the checkpoint"


def test_an_edited_setting_that_may_change_is_followed(copy_of):
    directory = copy_of(lambda config: config["settings"]["evaluation"].update(num_tasks=5, every=0))
    resume(directory, "--iterations", 7)
    assert open_run(directory)[1].evaluation.num_tasks == 5


def test_the_checkpoint_of_other_settings_or_another_run_is_refused(unbroken, tmp_path, capsys):
    assert load_checkpoint(unbroken / "best.pt")["config"] == Run.open(unbroken).config
    for flags, seed, message in (
        (["--discount", 0.5], 0, "discount = 0.5; allowed: 0.99, as in the checkpoint"),
        (["--seed", 7], 7, "checkpoint.pt is of navigation_2d with seed 0; allowed: navigation_2d with seed 7"),
    ):
        directory = tmp_path / f"seed{seed}"
        train("--iterations", 1, *flags, "--run-dir", directory)
        (directory / "checkpoint.pt").write_bytes((unbroken / "checkpoint.pt").read_bytes())
        assert message in error_of(capsys, resume, directory, "--iterations", 9)
    assert message in error_of(capsys, evaluate.main, [str(directory)])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda config: config.update(settings=None), "there are no settings in it"),
        (lambda config: config.update(version=99), "version = 99"),
        (lambda config: config["settings"]["sampling"].update(num_tasks="many"), "--num-tasks = 'many'"),
        (lambda config: config["settings"]["advantages"].update(discount=True), "--discount = True"),
    ],
)
def test_a_config_that_makes_no_sense_is_named(copy_of, capsys, edit, message):
    directory = copy_of(edit)
    for call in (lambda: resume(directory), lambda: evaluate.main([str(directory)])):
        line = error_of(capsys, call)
        assert line.startswith(f"error: {directory / 'config.json'} cannot be used: {message}")


SERVER = """
import json, os, sys
from metarl.experiments import navigation_2d
from metarl.experiments.runner import training
for line in sys.stdin:  # the first run is not killed: it imports what the others then have
    warm = "metarl.experiments.runner.records" in sys.modules
    child = os.fork() if warm else 0
    if not child:
        out = os.dup(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        training.main(navigation_2d.EXPERIMENT, json.loads(line), evaluated=False)
        if warm:
            os._exit(0)
        os.dup2(out, 1)
    print(child, flush=True)
    if child:
        print(os.waitpid(child, 0)[1], flush=True)
"""


def test_killed_at_random_moments_a_run_always_resumes(tmp_path):
    """SIGKILL ten times, at random moments from its start on, then let it finish."""
    rng, directory = random.Random(0), tmp_path / "run"
    new = [*TINY, "--iterations", "99", "--run-dir", str(directory)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    moments = []
    with subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, **pipes) as server:

        def start(words):
            server.stdin.write(json.dumps(words) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        start([*TINY, "--run-dir", str(tmp_path / "first")])
        for kill in range(10):
            done = len(Run(directory).metrics())
            resumes = (directory / "checkpoint.pt").exists()
            child = start(["--resume", str(directory)] if resumes else new)
            # Two kills hit the start; the others wait for an iteration or two, and hit the next one.
            wanted, deadline = done + (0 if kill < 2 else rng.randint(1, 2)), time.monotonic() + 60
            while len(Run(directory).metrics()) < wanted and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.random() * (0.3 if kill < 2 else 0.05))
            os.kill(child, signal.SIGKILL)
            assert server.stdout.readline().strip() == str(int(signal.SIGKILL))
            if (directory / "checkpoint.pt").exists():
                moments.append((len(Run(directory).metrics()), state_of(directory)["iteration"]))
                if moments[-1][1] >= 4:  # start again, so that ten kills fit into six iterations
                    for path in directory.iterdir():
                        path.unlink()
        _, errors = server.communicate()
    assert "Traceback" not in errors
    assert len(set(moments)) > 2
    if (directory / "checkpoint.pt").exists():
        resume(directory, "--iterations", 6)
    else:
        train("--iterations", 6, "--run-dir", directory)
    train("--iterations", 6, "--run-dir", tmp_path / "unbroken")
    assert_same_run(directory, tmp_path / "unbroken")


def interrupt(learner):
    signal.raise_signal(signal.SIGINT)  # in this thread: two that another one takes may become one


def test_an_interrupt_ends_the_iteration_and_saves_it(tmp_path, monkeypatch, capsys):
    before_iteration(2, interrupt, monkeypatch)
    with pytest.raises(SystemExit) as left:
        train("--iterations", 6, "--checkpoint-every", 4, "--run-dir", tmp_path / "run")
    assert left.value.code == 130
    assert f"stopped after iteration 3; continue with --resume {tmp_path / 'run'}" in capsys.readouterr().out
    assert state_of(tmp_path / "run")["iteration"] == 3


def test_a_second_interrupt_stops_at_once_with_one_line(tmp_path, monkeypatch, capsys):
    before_iteration(2, interrupt, monkeypatch)
    before_iteration(2, interrupt, monkeypatch)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
    try:
        with pytest.raises(SystemExit) as left:
            train("--iterations", 6, "--run-dir", tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, before)
    assert left.value.code == 130
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: stopped at once")
    assert state_of(tmp_path / "run")["iteration"] == 2


def test_a_run_that_is_being_written_cannot_be_resumed_elsewhere(tmp_path, monkeypatch):
    def resume_elsewhere(learner):
        words = [sys.executable, "experiments/navigation_2d.py", "--resume", tmp_path / "run", "--iterations", "9"]
        other = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert other.returncode == 2
        assert other.stderr.startswith(f"error: {tmp_path / 'run'} is being written by another process")

    before_iteration(2, resume_elsewhere, monkeypatch)
    train("--iterations", 3, "--run-dir", tmp_path / "run")
    assert [line["iteration"] for line in timeless_metrics(tmp_path / "run")] == [1, 2, 3]


def test_a_checkpoint_of_parameters_that_do_not_fit_is_refused(tmp_path, capsys):
    train("--iterations", 1, "--run-dir", tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    state["learner"]["theta"].pop("log_std")
    save_checkpoint(tmp_path / "run" / "checkpoint.pt", state)
    line = error_of(capsys, resume, tmp_path / "run", "--iterations", 2)
    assert "checkpoint.pt does not fit the settings of the run" in line
    assert "log_std" in line
    assert parameters(tmp_path / "run").keys() == state["learner"]["theta"].keys()


@pytest.mark.parametrize("wrong", ["text", None, [1, "x"], {"a": 1}, torch.ones(3)], ids=lambda of: type(of).__name__)
@pytest.mark.parametrize(
    "path",
    [
        "learner",
        "learner/theta",
        "learner/theta/log_std",
        "learner/outer",
        "learner/iteration",
        "learner/env_steps",
        "progress",
        "progress/best_metric",
        "progress/best_iteration",
    ],
)
def test_a_checkpoint_with_other_content_is_refused_in_one_line(unbroken, tmp_path, path, wrong):
    if path == "learner/theta/log_std" and isinstance(wrong, torch.Tensor):
        wrong = torch.ones(2, dtype=torch.int64)  # of the right shape
    (tmp_path / "config.json").write_bytes((unbroken / "config.json").read_bytes())
    state = load_checkpoint(unbroken / "checkpoint.pt")
    *parents, name = path.split("/")
    holder = state
    for parent in parents:
        holder = holder[parent]
    holder[name] = wrong
    save_checkpoint(tmp_path / "checkpoint.pt", state)
    with pytest.raises(RunError) as refusal:
        open_run(tmp_path)
    assert str(refusal.value).startswith(str(tmp_path / "checkpoint.pt"))
    assert "\n" not in str(refusal.value)
    if len(parents) == 1 and path != "learner/theta":
        assert {"outer": "outer optimiser"}.get(name, name) in str(refusal.value)


@pytest.mark.parametrize("config", ["text", {"experiment": "navigation_2d", "version": 99, "settings": {}}])
def test_a_checkpoint_whose_configuration_makes_no_sense_is_named(unbroken, tmp_path, capsys, config):
    (tmp_path / "config.json").write_bytes((unbroken / "config.json").read_bytes())
    save_checkpoint(tmp_path / "checkpoint.pt", {**load_checkpoint(unbroken / "checkpoint.pt"), "config": config})
    for call in (lambda: resume(tmp_path, "--iterations", 9), lambda: evaluate.main([str(tmp_path)])):
        assert str(tmp_path / "checkpoint.pt") in error_of(capsys, call)


def test_notes_of_resuming_that_make_no_sense_are_named(copy_of, capsys):
    directory = copy_of(lambda config: config.update(resumed=[3]))
    assert "resumed = [3]" in error_of(capsys, resume, directory, "--iterations", 9)
