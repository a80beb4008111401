"""Signal and noise of meta-gradients: the statistics against loops and planted truths, the command on a small run."""

import json

import numpy as np
import pytest
import torch

from metarl.core.parameters import ravel
from metarl.experiments import navigation_2d
from metarl.experiments.runner.start import open_run
from metarl.experiments.runner.training import main
from metarl.experiments.studies import meta_gradients
from metarl.runs import load_checkpoint
from tests.experiments.runner.helpers import error_of

TINY = [
    "--recipe",
    "paper",
    "--num-tasks",
    "4",
    "--episodes-per-task",
    "3",
    "--horizon",
    "5",
    "--hidden-sizes",
    "4",
    "--iterations",
    "1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "navigation"
    main(navigation_2d.EXPERIMENT, [*TINY, "--evaluation-tasks", "2", "--run-dir", str(directory)])
    return directory


def mean_across(left, right, batches):
    return np.mean([float(left[i] @ right[j]) for i in batches for j in batches if i != j])


def test_products_across_batches_and_their_error_are_those_of_loops():
    left, right = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, error = meta_gradients.across_batches(left, right)
    assert mean == pytest.approx(mean_across(left, right, range(6)))
    without = [mean_across(left, right, [i for i in range(6) if i != out]) for out in range(6)]
    assert error == pytest.approx(np.sqrt(5 * np.var(without)))  # (B - 1) / B times the summed squares


def test_planted_signal_is_found():
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([3.0, 0, 0, 0], dtype=torch.float64)
    other = torch.tensor([0.6, 0.8, 0, 0], dtype=torch.float64)  # at a cosine of 0.6 to it
    noise = torch.randn(2, 400, 4, dtype=torch.float64, generator=generator)
    rows = meta_gradients.compare({"unbiased": truth + 2 * noise[0], "other": other + noise[1]}, "unbiased")
    expected = {"unbiased": (5, 9 / 25, 9 / 5), "other": (5**0.5, 1 / 5, 0.6 * 3 / 5**0.5)}  # |noise|^2 = 4, per unit
    for name, (length, signal, rise) in expected.items():
        row = rows[name]
        assert row["length"] == pytest.approx(length, rel=0.05)
        assert abs(row["signal"] - signal) < 4 * row["signal_error"] < 0.3
        assert abs(row["rise"] - rise) < 4 * row["rise_error"] < 0.8


@pytest.mark.parametrize(
    ("estimator", "order", "place"), [("lvc", "second", 2), ("score", "second", 3), ("lvc", "first", 4)]
)
def test_a_variant_is_what_a_learner_with_that_estimator_descends(run, estimator, order, place):
    _, _, learner = open_run(run, changes={"estimator": estimator, "second_order": order == "second"})
    tasks = learner.task_distribution.sample(4, np.random.default_rng(0))
    path = learner.adapt(tasks, 1, purpose="train")
    _, expected = learner.objective(path).loss_and_gradient(ravel(list(learner.theta.values())))
    torch.testing.assert_close(meta_gradients.meta_gradients(learner, path)[place].float(), expected)


def test_the_command_measures_and_leaves_the_run_alone(run, capsys):
    before = load_checkpoint(run / "checkpoint.pt")["learner"]
    meta_gradients.main([str(run), "--batches", "3", "--gae-lambdas", "1", "0.5"])
    lines = capsys.readouterr().out.splitlines()
    found = json.loads((run / "meta_gradients.json").read_text())
    names = ["score, second, E-MAML", "dice, second", "lvc, second", "score, second", "score, first"]
    assert list(found["rows"]) == [f"{name}, lambda {factor}" for factor in ("1", "0.5") for name in names]
    assert [line[:36].strip() for line in lines[1:-2]] == list(found["rows"])
    assert lines[-2] == "of fewer than 10 batches; their standard errors are themselves uncertain"
    assert found["iteration"] == 1
    lengths = {name: row["length"] for name, row in found["rows"].items()}
    assert len(set(lengths.values())) == len(lengths)  # each is measured by itself
    assert all(row["signal"] < 0.99 for row in found["rows"].values())  # batches differ
    own = found["rows"]["lvc, second, lambda 1"]
    assert own["rise"] == pytest.approx(own["signal"] * own["length"])
    after = load_checkpoint(run / "checkpoint.pt")["learner"]
    assert all(torch.equal(after["theta"][name], value) for name, value in before["theta"].items())
    with pytest.raises(SystemExit):
        meta_gradients.main([str(run), "--batches", "3"])
    assert capsys.readouterr().err == f"error: {run / 'meta_gradients.json'} is there already; allowed: --output FILE\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batches", "2"], "--batches = 2; allowed: at least 3"),
        (["--gae-lambdas", "1", "1.5"], "--gae-lambdas = 1.5; allowed: 0 to 1"),
        (["--inner-step-size", "-1"], "--inner-step-size = -1.0; allowed: more than 0"),
        (
            ["--output", "/nowhere/at/all.json"],
            "--output = /nowhere/at/all.json; allowed: a file in a folder that exists",
        ),
        (["--output", "/"], "--output = /; allowed: a file in a folder that exists"),
    ],
)
def test_bad_input_gets_one_line(run, capsys, flags, message):
    assert error_of(capsys, meta_gradients.main, [str(run), *flags]).startswith(f"error: {message}")


def test_a_run_that_e_maml_cannot_take_gets_one_line(tmp_path, capsys):
    words = ["--weighting", "episode", "--evaluation-tasks", "2", "--run-dir", str(tmp_path / "run")]
    main(navigation_2d.EXPERIMENT, [*TINY, *words])
    line = error_of(capsys, meta_gradients.main, [str(tmp_path / "run")])
    assert line == f"error: {tmp_path / 'run'} has --weighting episode; allowed: a run with timestep"
