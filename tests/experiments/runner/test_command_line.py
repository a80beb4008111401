"""Flags, and the one line that bad input gets."""

import subprocess
import sys

import pytest
import torch

from metarl.core.settings import SettingError, setting
from metarl.experiments import evaluate, navigation_2d
from metarl.experiments.runner.command_line import OneLineParser, read, read_plain
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.flat_settings import flat_settings
from metarl.experiments.runner.training import main
from tests.experiments.runner.helpers import ROOT, TINY, assert_same_parameters, error_of, parameters, resume, train

SCRIPTS = [
    "navigation_2d",
    "half_cheetah_direction",
    "half_cheetah_velocity",
    "ant_velocity",
    "ant_direction",
    "ant_goal",
    "walker_parameters",
    "hopper_parameters",
    "humanoid_direction",
    "meta_world",
    "bandits",
    "random_mdps",
]


def call(*arguments):
    main(navigation_2d.EXPERIMENT, arguments)


@pytest.mark.parametrize(
    ("arguments", "start", "end"),
    [
        ("--iteratoins 3", "unknown argument --iteratoins; the nearest is --iterations", "--help lists all"),
        ("--tasks 3", "unknown argument --tasks; here it is --num-tasks", "--help lists all"),
        (
            "--order first",
            "unknown argument --order; here it is --second-order or --no-second-order;",
            "--help lists all",
        ),
        ("--meta-lr=0.1", "unknown argument --meta-lr=0.1; here it is --outer-step-size", "--help lists all"),
        ("--num-tasks 0", "--num-tasks = 0; allowed:", "at least 1"),
        ("--episodes-per-task -2", "--episodes-per-task = -2; allowed:", "at least 1"),
        ("--hidden-sizes 64 0", "--hidden-sizes = (64, 0); allowed:", "at least 1"),
        ("--seed -1", "--seed = -1; allowed:", ""),
        ("--inner-step-size 0", "--inner-step-size = 0.0; allowed:", "more than 0"),
        ("--inner-step-size nan", "--inner-step-size = nan; allowed:", "more than 0"),
        ("--max-kl -1", "--max-kl = -1.0; allowed:", "more than 0"),
        ("--max-kl inf", "--max-kl = inf; allowed:", "more than 0"),
        ("--discount 1.5", "--discount = 1.5; allowed:", "at least 0 and at most 1"),
        ("--seed x", "argument --seed: 'x'", "whole number"),
        ("--horizon 3.5", "argument --horizon: '3.5'", "whole number"),
        ("--activation relo", "--activation = 'relo'; allowed: relu, tanh", "the nearest is relu"),
        ("--device tpu0", "--device = 'tpu0'; allowed: auto, cpu, cuda", ""),
        ("--estimator lvcc", "--estimator = 'lvcc'; allowed: score, likelihood-ratio, lvc, dice", "nearest is lvc"),
        ("--outer pppo", "--outer = 'pppo'; allowed: trpo, ppo, adam, reptile", "the nearest is ppo"),
        ("--estimator dice --initial-sampling", "--initial-sampling = True", "score"),
        (
            "--recipe paper --outer reptile --adaptation anil",
            "--outer = Reptile(step_size=0.1) would leave mean.0.bias",
            "",
        ),
        ("--clip 0.5", "--clip has no effect with --outer trpo", "allowed with: ppo"),
        ("--outer reptile --max-kl 0.1", "--max-kl has no effect with --outer reptile", "allowed with: trpo"),
        ("--recipe ProMP --max-kl 0.1", "--max-kl has no effect with --outer ppo", "allowed with: trpo"),
        ("--context-size 3", "--context-size has no effect with --adaptation maml", "allowed with: cavia"),
        ("--outer trpo --outer-step-size 1", "--outer-step-size has no effect with --outer trpo", "ppo, adam"),
        ("--inner-step-size-milestones 5", "--inner-step-size-milestones = (5,)", ""),
        ("--seed", "argument --seed: expected one argument", ""),
        ("--recipe papper", "--recipe = 'papper'; allowed: 'paper', 'pretrained'", "the nearest is paper"),
        ("--resume nowhere", "nowhere holds no run", ""),
        ("--resume nowhere --recipe maml", "--recipe with --resume", ""),
        ("--resume nowhere --run-dir x", "--run-dir with --resume", ""),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(capsys, tmp_path, monkeypatch, arguments, start, end):
    monkeypatch.chdir(tmp_path)
    line = error_of(capsys, call, *arguments.split())
    assert line.startswith(f"error: {start}")
    assert line.endswith(end)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_where_there_is_none(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = error_of(capsys, call, "--device", "cuda")
    assert line.startswith("error: --device = cuda, but no CUDA GPU is available")
    assert line.count("--device") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_every_setting_and_fits_on_two_screens(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "130")
    experiment = find_experiment(name)
    with pytest.raises(SystemExit) as leaving:
        main(experiment, ["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 120
    shown, settings = " ".join(text.split()), flat_settings(experiment.settings)
    for setting_ in settings.values():
        assert setting_.flag in shown
        assert setting_.field.metadata["help"] in shown
        assert (
            "{" + ",".join(setting_.field.metadata["choices"]) + "}" in shown or not setting_.field.metadata["choices"]
        )
        assert f"\n{setting_.group}:\n" in text
    assert all(recipe in shown for recipe in experiment.recipes)
    assert "--resume" in shown


def test_help_shows_the_defaults_of_the_default_recipe_and_which_variant_a_flag_is_of(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "130")
    with pytest.raises(SystemExit):
        call("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "step size of the inner loop, alpha (default 0.06)" in shown
    assert "ppo, adam: step size of Adam (default 0.001; ProMP's code)" in shown
    assert "default 0.02; nats; paper's code" in shown


def test_help_needs_neither_simulators_nor_plots():
    code = """
import sys
from metarl.experiments import navigation_2d
from metarl.experiments.runner.training import main
try:
    main(navigation_2d.EXPERIMENT, ["--help"])
except SystemExit:
    print(sorted({"mujoco", "matplotlib", "tensorboard"} & set(sys.modules)))
"""
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("script", "peer", "ours"),
    [
        ("navigation_2d", "--lr", "--outer-step-size"),
        ("navigation_2d", "--fast-lr", "--inner-step-size"),
        ("navigation_2d", "--num-steps", "--inner-steps"),
        ("navigation_2d", "--fomaml", "--no-second-order"),
        ("sine", "--meta-lr", "--learning-rate"),
        ("sine", "--fomaml", "--no-second-order"),
    ],
)
def test_names_of_other_libraries_lead_to_ours(script, peer, ours, capsys):
    line = error_of(capsys, read, find_experiment(script), [peer, "1"])
    assert line == f"error: unknown argument {peer}; here it is {ours}; --help lists all"


def test_flags_become_typed_values():
    words = "--max-kl 0.02 --hidden-sizes 64 32 --bootstrap --no-second-order --support-lambda 0 --recipe ANIL"
    request = read(navigation_2d.EXPERIMENT, words.split())
    assert request.given == {
        "max_kl": 0.02, "hidden_sizes": (64, 32), "bootstrap": True, "second_order": False, "support_lambda": 0.0
    }  # fmt: skip
    assert (request.recipe, request.run_dir, request.resume) == ("ANIL", None, None)


def test_a_script_with_settings_of_its_own(capsys):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Own:
        repeats: int = setting(3, "how often", at_least=1)
        widths: tuple[int, ...] = setting((4,), "how wide", at_least=1, flag="layer_widths")

    parser = OneLineParser("")
    parser.add_argument("--json", action="store_true")
    namespace, settings = read_plain(Own, ["--layer-widths", "2", "3", "--json"], parser)
    assert (vars(namespace), settings) == ({"json": True}, Own(3, (2, 3)))
    with pytest.raises(SettingError, match=r"--repeats = 0"):
        read_plain(Own, ["--repeats", "0"], OneLineParser(""))


def test_evaluate_refuses_what_makes_no_sense(capsys, tmp_path):
    run = tmp_path / "run"
    assert error_of(capsys, evaluate.main, [str(tmp_path / "none")]).endswith("there is no config.json in it")
    train("--run-dir", run)
    capsys.readouterr()
    for words, start in (
        (["--tasks", "0"], "--tasks = 0; allowed:"),
        (["--shots", "1"], "--shots means nothing in navigation_2d"),
        (["--extra-step-scale", "0.3", "--steps", "1"], "--extra-step-scale with --steps 1"),
    ):
        assert error_of(capsys, evaluate.main, [str(run), *words]).startswith(f"error: {start}")
    (run / "best.pt").write_bytes(b"PK")
    assert "best.pt cannot be read" in error_of(capsys, evaluate.main, [str(run), "--best"])


CHOICES = [
    "--estimator lvc --outer ppo",
    "--no-second-order",
    "--initial-sampling",
    "--estimator dice --hvp-sample-fraction 0.5",
    "--estimator likelihood-ratio --outer adam",
    "--adaptation meta-sgd --inner-steps 3",
    "--adaptation layer-step-sizes --inner-steps 2 --multi-step",
    "--adaptation anil",
    "--adaptation cavia --context-size 3",
    "--outer reptile --inner-steps 3",
]


@pytest.mark.parametrize("arguments", CHOICES)
def test_every_choice_trains_and_continues(arguments, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(*arguments.split(), "--iterations", 2, "--run-dir", whole)
    train(*arguments.split(), "--iterations", 1, "--run-dir", parts)
    resume(parts, "--iterations", 2)
    assert_same_parameters(parameters(whole), parameters(parts))
    evaluate.main([str(whole)])


def test_the_tiny_run_of_these_tests_names_only_flags_that_exist():
    assert {word for word in TINY if word.startswith("--")} <= {"--recipe"} | {
        setting_.flag for setting_ in flat_settings(navigation_2d.EXPERIMENT.settings).values()
    }
