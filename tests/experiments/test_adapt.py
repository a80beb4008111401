"""Adapting a saved run to one task from the command line, and acting with what it saves."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import metarl
from metarl.experiments import adapt, evaluate, open_run, sine
from metarl.experiments.runner.training import main
from tests.experiments.runner.helpers import ROOT, error_of, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "navigation"
    train("--run-dir", directory)
    return directory


def test_it_prints_returns_and_saves_what_the_learner_adapts_to(run, tmp_path, capsys):
    adapt.main([str(run), "--task", '{"goal": [0.3, -0.2]}', "--steps", "2", "--output", str(tmp_path / "agent.pt")])
    _, _, learner = open_run(run)
    adaptation_steps = learner.adapt({"goal": np.array([[0.3, -0.2]])}, 2)
    lines = capsys.readouterr().out.splitlines()
    expected = [adaptation_step.episodes.returns.mean() for adaptation_step in adaptation_steps]
    assert lines[:3] == [
        f"{k} gradient steps: return {value:.2f}, mean of 4 episodes" for k, value in enumerate(expected)
    ]
    loaded, agent = metarl.Agent.load(tmp_path / "agent.pt"), learner.agent(adaptation_steps[-1])
    assert all(np.array_equal(loaded(x), agent(x)) for x in np.random.default_rng(0).normal(size=(9, 2)))
    assert not np.array_equal(learner.agent(adaptation_steps[0])(np.ones(2)), agent(np.ones(2)))


def test_it_uses_as_many_threads_as_it_is_told(run, tmp_path, capsys, restored_threads):
    torch.set_num_threads(2)
    adapt.main([str(run), "--task", '{"goal": [0.3, -0.2]}', "--threads", "1", "--output", str(tmp_path / "agent.pt")])
    assert torch.get_num_threads() == 1


def test_three_lines_act_without_environment_or_run(run, tmp_path, capsys):
    adapt.main([str(run), "--task", '{"goal": [0.3, -0.2]}', "--best"])
    shown = capsys.readouterr().out.splitlines()[-1]
    assert shown.startswith(f"adapted policy in {run / 'adapted.pt'}; agent = metarl.Agent.load(")
    code = f"import sys, numpy, metarl\nagent = metarl.Agent.load({str(run / 'adapted.pt')!r})\n"
    code += "print(agent(numpy.zeros(2)))\nassert not {'envs', 'experiments', 'mujoco'} & set(sys.modules)"
    action = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert np.abs(np.fromstring(action.strip(" []\n"), sep=" ")).max() <= 0.1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--task", "{goal: 1}"], 'error: --task = {goal: 1}; allowed: JSON, such as {"goal": [0.5, 0.5]}'),
        (["--task", "[1]"], 'error: --task = [1]; allowed: a JSON object, such as {"goal": [0.5, 0.5]}'),
        (
            ["--task", '{"goal": [0.1, 0.9]}'],
            "'goal' of task 0 is [0.1 0.9]; allowed: Box(-0.5, 0.5, (2,), float64); for",
        ),
        (
            ["--task", '{"goal": "left"}'],
            'error: --task = {"goal": "left"}: could not convert string to float: \'left\'; f',
        ),
        (
            ["--task", '{"gaol": [0.1, 0.2]}'],
            "tasks have the parameters ['gaol']; allowed: exactly ['goal']; for example",
        ),
        (["--task", '{"goal": [1' + 400 * "0" + ", 0]}"], "int too large to convert to float; for example"),
        (["--task", '{"goal": [0, 0]}', "--steps", "-1"], "error: --steps = -1; allowed: at least 0"),
        (
            ["--task", '{"goal": [0, 0]}', "--output", "no/where.pt"],
            "error: --output = no/where.pt; allowed: a file in a",
        ),
        (["--task", "[" * 100_000], "; allowed: JSON, such as"),
        (["--task", '{"goal": [0, 0]}', "--episodes", "0"], "error: --episodes = 0; allowed: at least 1"),
    ],
)
def test_bad_input_gets_one_line(run, capsys, arguments, line):
    assert line in error_of(capsys, adapt.main, [str(run), *arguments])
    assert not (run / "nothing.pt").exists()


def test_no_file_of_a_run_is_replaced(run, capsys):
    before = (run / "checkpoint.pt").read_bytes()
    words = [str(run), "--task", '{"goal": [0, 0]}', "--output", str(run / "checkpoint.pt")]
    line = error_of(capsys, adapt.main, words)
    assert line == f"error: --output = {run / 'checkpoint.pt'} is a file of a run; allowed: a name that is free there"
    assert (run / "checkpoint.pt").read_bytes() == before


def test_a_supervised_run_has_no_tasks_to_act_in(tmp_path, capsys):
    main(sine.EXPERIMENT, ["--threads", "1", "--iterations", "0", "--run-dir", str(tmp_path / "sine")], evaluated=False)
    line = error_of(capsys, adapt.main, [str(tmp_path / "sine"), "--task", "{}"])
    assert line == "error: sine has no tasks to act in; allowed: a reinforcement-learning run"


def test_results_of_another_run_are_not_replaced(run, tmp_path, capsys):
    line = error_of(capsys, evaluate.main, [str(run), "--tasks", "2", "--output", str(run)])
    assert line.startswith(f"error: --output = {run} is a run")
