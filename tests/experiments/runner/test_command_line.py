"""Configurations, flags and the one line that bad input gets."""

from dataclasses import dataclass, fields

import pytest
import torch

from metarl.experiments import evaluate, navigation_2d
from metarl.experiments.navigation_2d import NavigationSettings
from metarl.experiments.runner.configuration import (
    OneLineParser,
    SettingError,
    check_settings,
    from_json,
    parse,
    setting,
    to_json,
)
from metarl.experiments.runner.training import main

_SIZES = {
    "iterations": 2,
    "tasks": 3,
    "episodes": 4,
    "horizon": 8,
    "hidden-sizes": 6,
    "evaluate-every": 0,
    "threads": 1,
}
_SIZES |= {"evaluation-tasks": 4, "evaluation-episodes": 3, "evaluation-steps": 2}
TINY = [word for name, size in _SIZES.items() for word in (f"--{name}", str(size))]


def error_of(capsys, call, *arguments, status=2):
    """The one line on stderr of a call that must end with this status."""
    with pytest.raises(SystemExit) as leaving:
        call(*arguments)
    assert leaving.value.code == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def train(*arguments):
    main(navigation_2d.EXPERIMENT, arguments)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--iteratoins 3", "error: unknown argument --iteratoins; the nearest is --iterations; --help lists all"),
        (
            "--seed 18446744073709551616",
            "error: --seed = 18446744073709551616; allowed: at least 0 and at most 1e+18",
        ),
        ("--tasks 0", "error: --tasks = 0; allowed: at least 1"),
        ("--episodes -2", "error: --episodes = -2; allowed: at least 1"),
        ("--hidden-sizes 64 0", "error: --hidden-sizes = 64 0; allowed: at least 1"),
        ("--inner-step-size 0", "error: --inner-step-size = 0.0; allowed: more than 0"),
        ("--inner-step-size nan", "error: --inner-step-size = nan; allowed: more than 0"),
        ("--max-kl -1", "error: --max-kl = -1.0; allowed: more than 0"),
        ("--max-kl inf", "error: --max-kl = inf; allowed: more than 0"),
        ("--discount 1.5", "error: --discount = 1.5; allowed: at least 0 and at most 1"),
        ("--seed x", "error: argument --seed: 'x' is no whole number"),
        ("--horizon 3.5", "error: argument --horizon: '3.5' is no whole number"),
        ("--activation relo", "error: --activation = 'relo'; allowed: relu, tanh; the nearest is relu"),
        ("--device tpu0", "error: --device = 'tpu0'; allowed: auto, cpu, cuda"),
        (
            "--estimator lvcc",
            "error: --estimator = 'lvcc'; allowed: score, likelihood-ratio, lvc, dice; the nearest is lvc",
        ),
        (
            "--estimator dice --initial-sampling",
            "error: initial_sampling = True with the estimator dice, which holds part of that term; allowed: score",
        ),
        (
            "--outer reptile --adaptation anil",
            "error: outer = Reptile(step_size=0.1) would leave mean.0.bias as it is; allowed: with a rule that "
            "adapts all, such as metarl.GradientDescent(0.1)",
        ),
        ("--clip 0.5", "error: --clip has no effect with --outer trpo; allowed with: ppo"),
        ("--outer reptile --max-kl 0.1", "error: --max-kl has no effect with --outer reptile; allowed with: trpo"),
        ("--context-size 3", "error: --context-size has no effect with --adaptation maml; allowed with: cavia"),
        (
            "--outer trpo --outer-step-size 1",
            "error: --outer-step-size has no effect with --outer trpo; allowed with: ppo, adam",
        ),
        ("--seed", "error: argument --seed: expected one argument"),
        ("--resume nowhere", "error: nowhere holds no run: there is no config.json in it"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(capsys, tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert error_of(capsys, train, *arguments.split()) == line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_where_there_is_none(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = error_of(capsys, train, "--device", "cuda")
    assert line == "error: --device = cuda, but no CUDA GPU is available; allowed here: auto, cpu"
    assert list(tmp_path.iterdir()) == []


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as leaving:
        train("--help")
    assert leaving.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for field in fields(NavigationSettings):
        assert "--" + field.name.replace("_", "-") in shown
        assert field.metadata["help"] in shown
    assert "step size of the inner loop (default 0.5; more than 0; paper's code; its text has 0.1)" in shown
    assert "--resume" in shown


def test_the_required_flags_exist():
    names = {field.name for field in fields(NavigationSettings)} | {"run_dir", "resume"}
    required = "seed iterations tasks episodes horizon inner_steps inner_step_size max_kl hidden_sizes activation"
    required += " device threads run_dir resume checkpoint_every evaluate_every"
    assert set(required.split()) <= names


def test_flags_become_typed_settings():
    _, settings = parse(
        NavigationSettings,
        ["--max-kl", "0.02", "--hidden-sizes", "64", "32", "--bootstrap", "--support-lambda", "0"],
        OneLineParser(""),
        {},
    )
    assert settings == NavigationSettings(max_kl=0.02, hidden_sizes=(64, 32), bootstrap=True, support_lambda=0.0)


def test_defaults_are_the_papers():
    s = NavigationSettings()
    assert (s.tasks, s.episodes, s.horizon, s.iterations, s.inner_step_size) == (20, 20, 100, 100, 0.5)
    assert (s.max_kl, s.discount, s.gae_lambda, s.hidden_sizes, s.activation) == (0.01, 0.99, 1.0, (100, 100), "relu")


def test_settings_survive_json():
    for support_lambda in (None, 0.5):
        settings = NavigationSettings(hidden_sizes=(7, 8), seed=3, support_lambda=support_lambda)
        assert from_json(NavigationSettings, to_json(settings)) == settings
    with pytest.raises(SettingError, match="--support-lambda = 'none'; allowed: float"):
        from_json(NavigationSettings, {"support_lambda": "none"})
    with pytest.raises(SettingError, match=r"--support-lambda = \(0.5,\); allowed: float"):
        from_json(NavigationSettings, {"support_lambda": [0.5]})
    with pytest.raises(SettingError, match="--gae-lambda = None; allowed: float"):
        from_json(NavigationSettings, {"gae_lambda": None})
    with pytest.raises(SettingError, match=r"unknown setting speed; allowed: .*seed"):
        from_json(NavigationSettings, {"speed": 3})
    with pytest.raises(SettingError, match="--tasks = -1; allowed: at least 1"):
        from_json(NavigationSettings, {"tasks": -1})


def test_bounds_are_inclusive_or_not_as_they_say():
    @dataclass(frozen=True)
    class Bounds:
        open: float = setting(1.0, "", more_than=0)
        closed: float = setting(1.0, "", at_least=0, at_most=1)
        several: tuple[int, ...] = setting((1,), "", at_least=1)

    check_settings(Bounds(open=1e-9, closed=0.0))
    for bad in (Bounds(open=0.0), Bounds(closed=-1e-9), Bounds(closed=1.1), Bounds(several=()), Bounds(several=(1, 0))):
        with pytest.raises(SettingError, match="allowed"):
            check_settings(bad)


def test_evaluate_refuses_what_makes_no_sense(capsys, tmp_path):
    assert error_of(capsys, evaluate.main, [str(tmp_path / "none")]).endswith("there is no config.json in it")
    train(*TINY, "--run-dir", str(tmp_path / "run"))
    capsys.readouterr()
    line = error_of(capsys, evaluate.main, [str(tmp_path / "run"), "--tasks", "0"])
    assert line == "error: --tasks = 0; allowed: at least 1"
    (tmp_path / "run" / "best.pt").write_bytes(b"PK")
    line = error_of(capsys, evaluate.main, [str(tmp_path / "run"), "--best"])
    assert line.endswith("best.pt cannot be read: truncated or not a checkpoint")


CHOICES = [
    "--estimator lvc --outer ppo",
    "--estimator score --order first",
    "--estimator score --initial-sampling",
    "--estimator dice --product-fraction 0.5",
    "--estimator likelihood-ratio --outer adam",
    "--adaptation meta-sgd --inner-steps 3",
    "--adaptation layer-step-sizes --inner-steps 2",
    "--adaptation anil",
    "--adaptation cavia --context-size 3",
    "--outer reptile --inner-steps 3",
]


@pytest.mark.parametrize("arguments", CHOICES)
def test_every_choice_trains_and_continues(arguments, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(*TINY, *arguments.split(), "--iterations", "2", "--run-dir", str(whole))
    train(*TINY, *arguments.split(), "--iterations", "1", "--run-dir", str(parts))
    train("--resume", str(parts), "--iterations", "2")
    first, second = (torch.load(run / "checkpoint.pt", weights_only=True)["state"]["learner"] for run in (whole, parts))
    assert all(torch.equal(value, second["theta"][name]) for name, value in first["theta"].items())
    evaluate.main([str(whole)])
