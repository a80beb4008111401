"""What products from a part of the samples do to TRPO's step: the statistics, the command on a small run."""

import json

import pytest
import torch

from metarl.core.parameters import ravel
from metarl.core.randomness import keyed_generator
from metarl.experiments import navigation_2d
from metarl.experiments.runner.start import open_run
from metarl.experiments.runner.training import main
from metarl.experiments.studies import products
from metarl.rl.outer import TRPO
from metarl.runs import load_checkpoint
from tests.experiments.runner.helpers import error_of

TINY = [
    "--recipe",
    "paper",
    "--num-tasks",
    "3",
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


def test_own_and_other_batches_are_told_apart():
    first = torch.tensor([[9.0, 1, 2], [3, 8, 4], [5, 6, 7]], dtype=torch.float64)
    rows = products.compare({"a": first, "b": first + torch.eye(3) + 0.5}, {"a": first, "b": 2 * first})
    assert (rows["a"]["own"], rows["a"]["others"], rows["a"]["difference"]) == (8, 3.5, 0)
    assert (rows["b"]["own"], rows["b"]["others"], rows["b"]["difference"]) == (9.5, 4, 0.5)
    assert rows["b"]["difference_error"] == 0
    assert rows["a"]["others_error"] > 0
    assert (rows["a"]["kl"], rows["b"]["kl"]) == (3.5, 7)


def test_a_step_is_the_learners_and_what_it_gains_is_measured_on_each_batch(run):
    _, _, learner = open_run(run)
    vector = ravel(list(learner.theta.values()))
    rows = products.measure(learner, 3, [0.5])
    batches = products.sample_objectives(learner, 3)
    own, others = [], []
    for i, objective in enumerate(batches):
        rng = keyed_generator(learner.seed, "train/products", learner.iteration + i)
        moved, _, outcome = TRPO(learner.outer.max_kl, 0.5).update(objective, vector, rng, {})
        own.append(outcome.loss_before - outcome.loss_after)
        others += [
            float(other.evaluate(vector)[0] - other.evaluate(moved)[0]) for j, other in enumerate(batches) if j != i
        ]
    assert rows["0.5"]["own"] == pytest.approx(sum(own) / 3, rel=1e-4)
    assert rows["0.5"]["others"] == pytest.approx(sum(others) / 6, rel=1e-4)
    rng = keyed_generator(learner.seed, "train/products", learner.iteration)
    _, _, outcome = learner.outer.update(batches[0], vector, rng, {})
    assert outcome.loss_after == learner.step()["loss_after"]  # the first batch is that of the next iteration


def test_the_command_measures_and_leaves_the_run_alone(run, capsys):
    before = (run / "checkpoint.pt").read_bytes()
    products.main([str(run), "--batches", "3", "--fractions", "1", "0.3"])
    lines = capsys.readouterr().out.splitlines()
    found = json.loads((run / "products.json").read_text())
    assert list(found["rows"]) == ["1.0", "0.3"]
    assert [line.split()[0] for line in lines[1:3]] == ["1.0", "0.3"]
    assert found["rows"]["1.0"]["own"] > found["rows"]["1.0"]["others"]  # a step fits its own noise
    assert found["rows"]["0.3"]["difference"] != 0
    assert (run / "checkpoint.pt").read_bytes() == before
    assert load_checkpoint(run / "checkpoint.pt")["learner"]["iteration"] == found["iteration"] == 1
    line = error_of(capsys, products.main, [str(run)])
    assert line == f"error: {run / 'products.json'} is there already; allowed: --output FILE"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batches", "2"], "--batches = 2; allowed: at least 3"),
        (["--fractions", "1", "0"], "--fractions = 0.0; allowed: more than 0, at most 1"),
    ],
)
def test_bad_input_gets_one_line(run, capsys, flags, message):
    assert error_of(capsys, products.main, [str(run), *flags]) == f"error: {message}"


def test_other_outer_optimisers_take_no_such_step(tmp_path, capsys):
    main(
        navigation_2d.EXPERIMENT,
        [*TINY, "--evaluation-tasks", "2", "--outer", "adam", "--run-dir", str(tmp_path / "a")],
    )
    line = error_of(capsys, products.main, [str(tmp_path / "a")])
    assert line == f"error: {tmp_path / 'a'} takes no steps of TRPO; allowed: runs that do"
