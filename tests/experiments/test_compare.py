"""Comparing rows of results, from the command line."""

import json
import re

import numpy as np
import pytest

from metarl.experiments import compare
from metarl.experiments.runner import results
from tests.experiments.runner.helpers import error_of

NAMED = "navigation_2d"


def seed_entry(seed, scores, **others):
    per_task = [None if np.isinf(score) else score for score in scores]
    value = {"mean": None, "standard_error": None, "per_task": per_task}  # of which only each task counts here
    metric = others.pop("metric", "return/step_1")
    return {"seed": seed, "tasks": {"goal": [seed]}, "last": {"env_steps": 2_500_000, metric: value}, **others}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Rows of two seeds more than once, and one with another metric."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)

    def keep(name, seeds, dynamics="own"):
        header = {"format": 1, "experiment": NAMED, "name": name, "dynamics": dynamics}
        results.save_row(tmp_path / NAMED / f"{results.slug(name)}.json", {**header, "seeds": seeds})

    keep("maml", [seed_entry(seed, scores) for seed, scores in ((0, [1, 3]), (1, [4, 6]), (2, [7, 29]))])
    keep("other", [seed_entry(seed, scores) for seed, scores in ((0, [0, 1]), (1, [6, 6]), (3, [2, 2]))])
    keep("oracle", [seed_entry(0, [9, 9], metric="return/step_0")])
    keep("elsewhere", [seed_entry(0, [9, 9])], dynamics="gymnasium")
    keep("errors", [seed_entry(seed, [1, np.inf], metric="mse/step_1") for seed in range(3)])
    keep("fewer errors", [seed_entry(seed, [1, seed], metric="mse/step_1") for seed in range(3)])
    return tmp_path


def test_two_rows(kept, capsys):
    pytest.importorskip("scipy", reason="needs the extra 'statistics'")
    compare.main([NAMED, "maml", "other"])
    out = capsys.readouterr().out
    first, _, head, maml, other, _, better, pairs, mean = out.splitlines()
    assert first == "navigation_2d, return/step_1"
    assert head.split() == ["row", "IQM", "95", "%", "interval", "M", "steps", "mean", "of", "each", "seed"]
    assert maml.split()[:2] == ["maml", "5.000"]  # of 3, 4, 6, 7
    assert maml.endswith("2.5  0: 2.000, 1: 5.000, 2: 18.0")
    assert other.split()[:2] == ["other", "2.750"]  # of 1, 2, 2, 6
    # of the nine pairs of 2, 5, 18 with 0.5, 6, 2: 2 > 0.5, 2 = 2, 5 > 0.5, 5 > 2, and 18 is above all
    assert better == "P(maml is better than other) = 0.72, over runs"
    assert pairs == "maml - other, by seed: 0: 1.500, 1: -1.000"
    assert mean == "their mean: 0.250; better with 1 of 2 seeds"


def test_smaller_errors_are_better(kept, capsys):
    pytest.importorskip("scipy", reason="needs the extra 'statistics'")
    compare.main([NAMED, "fewer errors", "errors"])
    out = capsys.readouterr().out
    assert "P(fewer errors is better than errors) = 1.00" in out
    assert "better with 3 of 3 seeds" in out


def test_all_rows_that_have_the_metric(kept, capsys):
    pytest.importorskip("scipy", reason="needs the extra 'statistics'")
    compare.main([NAMED])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:]]
    assert names == ["elsewhere", "maml", "other"]
    compare.main([NAMED, "--metric", "return/step_0"])
    assert "oracle" in capsys.readouterr().out


def test_other_test_tasks_of_the_same_seed_are_said(kept, capsys):
    pytest.importorskip("scipy", reason="needs the extra 'statistics'")
    row = results.load_row(kept / NAMED / "other.json")
    row["seeds"][1]["tasks"] = {"goal": [7]}
    results.save_row(kept / NAMED / "other.json", row)
    compare.main([NAMED, "maml", "other"])
    assert capsys.readouterr().out.splitlines()[-1] == "test tasks differ between the rows: seed 1"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["maml", "othr"], "error: ROW = 'othr'; allowed: .*; the nearest is other"),
        (["maml", "--metric", "return/step_2"], "error: --metric = 'return/step_2'; allowed: return/step_1; "),
        (["maml", "elsewhere"], "error: rows with the dynamics gymnasium, own; allowed: rows of the same"),
        (["maml", "oracle"], "error: ROW: maml and oracle have no metric in common"),
    ],
)
def test_what_cannot_be_compared_gets_one_line(kept, words, line, capsys):
    pytest.importorskip("scipy", reason="needs the extra 'statistics'")
    assert re.match(line, error_of(capsys, compare.main, [NAMED, *words]))


def test_no_results_and_no_scipy(kept, capsys, monkeypatch):
    monkeypatch.setattr(compare, "find_spec", lambda name: None)
    assert error_of(capsys, compare.main, [NAMED]).startswith("error: scipy is not installed; pip install")
    monkeypatch.setattr(compare, "find_spec", lambda name: name)
    assert error_of(capsys, compare.main, ["sine"]).startswith("error: NAME = 'sine' has no results; allowed")


def test_steps_of_another_kind_are_compared_only_by_a_metric_that_is_named(kept, capsys):
    pytest.importorskip("scipy", reason="needs the extra 'statistics'")
    path = kept / NAMED / "other.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": {"method": "rl2"}}))
    assert "steps of rl2 are earlier episodes" in error_of(capsys, compare.main, [NAMED, "maml", "other"])
    compare.main([NAMED, "maml", "other", "--metric", "return/step_1"])
    assert "better than other" in capsys.readouterr().out
