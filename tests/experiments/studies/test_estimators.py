"""The comparison of estimators: small, but whole."""

import json

import pytest

from metarl.experiments.studies import estimators
from metarl.rl.estimators import ESTIMATORS
from tests.experiments.runner.helpers import error_of

SMALL = ["--episodes", "2", "--groups", "4", "--estimates", "20", "--repeats", "1"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimators")
    estimators.main([*SMALL, "--output", str(folder)])
    assert (folder / "estimators.png").stat().st_size > 10_000
    return json.loads((folder / "estimators.json").read_text())["rows"]


def test_every_estimator_and_order_has_a_row(rows):
    pairs = {f"{name}, {order}" for name in ESTIMATORS for order in ("first", "second")}
    assert set(rows) == pairs | {"score, second, E-MAML", "score, first, E-MAML"}


def test_measured_biases_agree_with_the_exact_ones(rows):
    for name, row in rows.items():
        assert row["distance"] < 4 * row["half_width"], name  # of few groups


def test_the_figures_are_what_the_estimators_promise(rows):
    assert rows["score, second, E-MAML"]["bias"] < 1e-12
    assert rows["dice, second"]["bias_infinite_episodes_3_steps"] < 1e-12
    assert rows["score, first"]["bias"] > 0.3
    assert rows["score, second, E-MAML"]["std"] > rows["dice, second"]["std"] > 0
    assert rows["score, second"]["time"] == 1


def test_bad_input_gets_one_line(capsys, tmp_path):
    assert error_of(capsys, estimators.main, ["--episodes", "0"]).startswith("error: --episodes = 0; allowed: ")
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "folder"):  # before anything is measured
        line = error_of(capsys, estimators.main, ["--output", str(output)])
        assert line == f"error: --output = {output}; allowed: a folder"
