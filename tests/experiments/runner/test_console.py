"""The command `metarl`: the functions of the scripts under one name, and one line for what it does not know."""

import importlib
import sys

import pytest

from metarl.experiments import evaluate
from metarl.experiments.runner import console, training
from metarl.experiments.runner.experiment import Experiment, find_experiment
from tests.experiments.runner.helpers import ROOT, error_of


@pytest.fixture(autouse=True)
def program_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["metarl"])


def test_every_script_is_a_command_or_a_launcher():
    scripts = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__"}
    assert scripts == {*console.COMMANDS, *console.launchers()}
    for name in console.COMMANDS:
        assert callable(importlib.import_module(f"metarl.experiments.{name}").main)
    assert all(isinstance(find_experiment(name), Experiment) for name in console.launchers())


def test_a_command_gets_the_words_that_follow_it(monkeypatch):
    called = []
    monkeypatch.setattr(evaluate, "main", called.append)
    console.main(["evaluate", "runs/first", "--best"])
    assert called == [["runs/first", "--best"]]


@pytest.mark.parametrize("name", ["navigation-2d", "navigation_2d"])
def test_train_runs_a_launcher_by_its_name_with_dashes_or_underscores(name, monkeypatch):
    called = []
    monkeypatch.setattr(training, "main", lambda experiment, words: called.append((experiment.name, words)))
    console.main(["train", name, "--seed", "1"])
    assert called == [("navigation_2d", ["--seed", "1"])]


@pytest.mark.parametrize("words", [["train", "sine"], ["evaluate"], ["reproduce"]])
def test_usages_say_what_was_typed(words, capsys):
    with pytest.raises(SystemExit):
        console.main([*words, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: metarl {' '.join(words)} ")


@pytest.mark.parametrize("words", [[], ["--help"], ["train"], ["train", "-h"]])
def test_help_names_the_launchers(words, capsys):
    console.main(words)
    assert "navigation-2d, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "start", "nearest"),
    [
        ("trian navigation-2d", "error: COMMAND = 'trian'; allowed: train, ", "train"),
        ("train navigation", "error: NAME = 'navigation'; allowed: ", "navigation-2d"),
        ("train evaluate", "error: NAME = 'evaluate'; allowed: ", ""),
    ],
)
def test_what_is_not_known_gets_one_line(words, start, nearest, capsys):
    line = error_of(capsys, console.main, words.split())
    assert line.startswith(start)
    assert line.endswith(f"; the nearest is {nearest}" if nearest else "walker-parameters")


def test_check_is_a_command(capsys):
    with pytest.raises(SystemExit) as leaving:
        console.main(["check", "metarl.envs:Navigation2D"])
    assert leaving.value.code == 0
