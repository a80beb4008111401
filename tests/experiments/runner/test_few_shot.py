"""Few-shot runs from the command line: what they write, that they continue exactly, how they are evaluated."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from metarl.core.settings import SettingError
from metarl.experiments import evaluate, open_run, sine
from metarl.experiments.runner.config_file import settings_of
from metarl.experiments.runner.experiment import DeviceMemoryError
from metarl.experiments.runner.few_shot import METHODS
from metarl.experiments.runner.flat_settings import to_flat
from metarl.experiments.runner.training import main
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.gradient import MAML, FewShotReptile
from metarl.runs import load_checkpoint, save_checkpoint
from tests.experiments.runner.few_shot_runs import TINY, small_settings, train_sine
from tests.experiments.runner.helpers import ROOT, assert_same_run, error_of, timeless_metrics


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "unbroken"
    train_sine("--run-dir", directory)
    return directory


def test_a_run_writes_what_it_promises(unbroken):
    names = {path.name for path in unbroken.iterdir() if not path.name.startswith(("events", "."))}
    assert names == {
        "config.json", "metrics.jsonl", "checkpoint.pt", "best.pt", "evaluation.json", "adaptation.png", "curves.png"
    }  # fmt: skip
    lines = timeless_metrics(unbroken)
    assert [line["iteration"] for line in lines] == [2, 4, 6]
    assert {"mse/step_1", "loss", "meta_gradient_norm"} <= set(lines[0])
    assert [f"evaluation/mse/step_{k}" in lines[1] for k in range(4)] == [True, True, True, False]
    record = json.loads((unbroken / "evaluation.json").read_text())
    assert (record["iteration"], record["shots"], record["evaluation_tasks"]) == (6, 5, 30)
    assert record["mse/step_2"]["standard_error"] > 0
    assert len(record["mse/step_2"]["per_task"]) == 30
    config = json.loads((unbroken / "config.json").read_text())
    assert (config["recipe"], config["settings"]["method"]["variant"]) == ("paper", "maml")


@pytest.mark.parametrize("stop", [2, 4])
def test_stopped_and_resumed_equals_never_stopped(unbroken, tmp_path, stop):
    directory = tmp_path / "run"
    train_sine("--iterations", stop, "--run-dir", directory, evaluated=False)
    main(sine.EXPERIMENT, ["--resume", str(directory), "--iterations", "6"])
    assert_same_run(directory, unbroken)


def test_an_interrupt_ends_the_record_at_hand_and_the_run_continues_exactly(tmp_path):
    words = ["--iterations", "100000", "--evaluate-every", "0", "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / "sine.py"), *TINY, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "continue with --resume" in output
    done = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["learner"]["iteration"]
    assert done % 2 == 0
    more = ["--iterations", str(done + 4)]
    main(sine.EXPERIMENT, ["--resume", str(tmp_path / "run"), *more], evaluated=False)
    train_sine(*more, "--evaluate-every", 0, "--run-dir", tmp_path / "whole", evaluated=False)
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt")["learner"]["theta"] for name in ("run", "whole")]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    assert timeless_metrics(tmp_path / "run") == timeless_metrics(tmp_path / "whole")


def test_evaluate_counts_steps_and_shots(unbroken, tmp_path, capsys):
    evaluate.main([str(unbroken), "--output", str(tmp_path / "same")])
    assert (tmp_path / "same" / "evaluation.json").read_text() == (unbroken / "evaluation.json").read_text()
    evaluate.main([str(unbroken), "--best", "--steps", "4", "--shots", "20", "--output", str(tmp_path / "other")])
    other = json.loads((tmp_path / "other" / "evaluation.json").read_text())
    assert (other["shots"], other["iteration"]) == (20, 4)
    assert f"{other['mse/step_4']['mean']:.4f}" in capsys.readouterr().out
    evaluate.main([str(unbroken), "--best", "--steps", "4"])  # beside the run's own record
    assert f"results in {unbroken / 'evaluation-best-steps_4'}" in capsys.readouterr().out
    assert "mse/step_4" not in json.loads((unbroken / "evaluation.json").read_text())
    evaluate.main([str(unbroken), "--extra-step-scale", "0.3"])
    shorter = json.loads((unbroken / "evaluation-extra_step_scale_0.3" / "evaluation.json").read_text())
    own = json.loads((unbroken / "evaluation.json").read_text())
    assert [shorter[f"mse/step_{k}"] == own[f"mse/step_{k}"] for k in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--extra-step-scale", "0.3", "--steps", "1"], "--extra-step-scale"),
        (["--extra-step-scale", "0"], "--extra-step-scale"),
        (["--episodes", "3"], "--episodes"),
        (["--video"], "--video"),
        (["--statistics", "per-step"], "--statistics"),
        (["--shots", "-1"], "--shots"),
    ],
)
def test_what_means_nothing_in_an_evaluation_is_refused_by_name(unbroken, capsys, words, flag):
    before = {path.name for path in unbroken.iterdir()}
    assert error_of(capsys, evaluate.main, [str(unbroken), *words]).startswith(f"error: {flag} ")
    assert {path.name for path in unbroken.iterdir()} == before


def test_a_resumed_run_keeps_its_inner_loop(unbroken, capsys):
    words = ["--resume", str(unbroken), "--iterations", "8", "--shots", "3"]
    assert error_of(capsys, main, sine.EXPERIMENT, words).startswith("error: --shots = 3 cannot change")


def test_an_evaluation_is_that_of_the_library(unbroken):
    experiment, settings, learner = open_run(unbroken)
    evaluation = experiment.evaluate(settings, learner, "test")
    assert evaluation.learner.task_distribution == sine.Sine(5, 100)
    blocks = [
        evaluation.learner.metric(evaluation.learner.sample(size, "test", number), 2)
        for number, size in enumerate((25, 5))
    ]
    np.testing.assert_array_equal(evaluation.per_task, torch.cat(blocks, dim=1))


def test_statistics_that_a_network_has_not_are_refused_before_training(tmp_path, capsys):
    line = error_of(capsys, train_sine, "--evaluation-statistics", "per-step", "--run-dir", tmp_path / "run")
    assert line.startswith("error: --evaluation-statistics = per-step ")
    assert not (tmp_path / "run").exists()


def test_the_best_iterate_is_that_of_the_validation_metric_after_the_trained_steps():
    errors = {f"evaluation/mse/step_{step}": value for step, value in enumerate((9.0, 7.0, 5.0, 6.0))}
    of = sine.EXPERIMENT.selection_metric
    settings = small_settings(inner_steps=2, evaluation_steps=3)
    assert of(settings, {"mse/step_2": 1.0, **errors}) == -5
    assert of(small_settings(inner_steps=2, evaluation_steps=1), errors) == -7
    assert of(small_settings(method="pretrained"), errors) == -7
    assert of(small_settings(method="oracle", evaluation_steps=0), errors) == -9
    assert of(settings, {"mse/step_2": 1.0}) == -np.inf
    assert of(settings, {"evaluation/mse/step_2": np.nan}) == -np.inf


def test_a_record_is_the_mean_of_its_iterations(monkeypatch):
    settings = small_settings(record_every=4, checkpoint_every=4, evaluate_every=0, iterations=6)
    learner = sine.EXPERIMENT.build(settings)
    plain = sine.EXPERIMENT.build(settings)
    lines = [plain.step() for _ in range(6)]
    records = []
    for _ in range(2):
        learner, record = sine.EXPERIMENT.advance(settings, learner)
        records.append(record)
    assert [record["iteration"] for record in records] == [4, 6]
    parts = (lines[:4], lines[4:])
    for name in ("mse/step_1", "loss", "meta_gradient_norm"):
        assert [record[name] for record in records] == [np.mean([line[name] for line in part]) for part in parts]


@pytest.mark.parametrize("method", [*METHODS, "pretrained", "oracle"])
def test_every_method_trains_and_is_evaluated(method):
    steps = {} if method in ("pretrained", "oracle") else {"inner_steps": 2}
    small = small_settings(method=method, **steps)
    learner = sine.EXPERIMENT.build(small)
    before = learner.theta["head.weight"]
    for _ in range(2):
        learner.step()
    assert not torch.equal(learner.theta["head.weight"], before)
    evaluation = sine.EXPERIMENT.evaluate(small, learner, "test")
    assert evaluation.per_task.shape == (3, 3)
    assert (evaluation.mean[1:] != evaluation.mean[0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_as_asked_for(method):
    learner = sine.EXPERIMENT.build(small_settings(method=method, inner_steps=3, inner_step_size=0.2))
    rule = learner.method.rule
    assert type(learner.method) is (FewShotReptile if method == "reptile" else MAML)
    assert (rule.step_size, rule.inner_steps, rule.extra_step_scale) == (0.2, 3, 1.0)
    assert rule.second_order == (method not in ("first-order", "reptile"))
    assert learner.method.multi_step_iterations == (1_500 if method == "maml++" else 0)
    step_sizes = [name for name in learner.theta if name.startswith("step_size.")]
    assert bool(step_sizes) == (method in ("meta-sgd", "maml++"))
    heads = {"head.weight", "head.bias"}
    assert (set(rule.adapted_names(rule.start(learner.theta))) == heads) == (method == "anil")


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"method": "maml", "multi_step_iterations": 3}, "--multi-step-iterations"),
        ({"method": "pretrained", "inner_steps": 3}, "--inner-steps"),
        ({"method": "first-order", "second_order": True}, "--second-order"),
        ({"method": "mamm"}, "--method"),
        ({"shots": 0}, "--shots"),
        ({"queries": -1}, "--queries"),
        ({"final_learning_rate": 0.0}, "--final-learning-rate"),
    ],
)
def test_settings_that_are_not_allowed_or_have_no_effect_are_refused_by_name(changes, flag):
    with pytest.raises(SettingError, match=f"^{flag}"):
        small_settings(**changes)


def test_records_must_fit_checkpoints(capsys, tmp_path):
    line = error_of(capsys, train_sine, "--checkpoint-every", 3, "--run-dir", tmp_path / "run")
    assert line.startswith("error: --checkpoint-every = 3;")
    with pytest.raises(SettingError, match="--evaluate-every = 3"):
        sine.EXPERIMENT.build(small_settings(evaluate_every=3))


def test_parameters_alone_are_evaluated_and_not_trained_on(unbroken, tmp_path, capsys):
    train_sine("--iterations", 2, "--run-dir", tmp_path / "run", evaluated=False)
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    del state["learner"]["adam"]
    save_checkpoint(tmp_path / "run" / "checkpoint.pt", state)
    evaluate.main([str(tmp_path / "run"), "--output", str(tmp_path / "evaluation")])
    assert "mse/step_2" in json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    capsys.readouterr()
    line = error_of(capsys, main, sine.EXPERIMENT, ["--resume", str(tmp_path / "run"), "--iterations", "4"])
    assert "without Adam's moments" in line


def test_a_state_of_torchs_adam_continues_as_it_would_have(tmp_path):
    """Runs of the version before had torch's own optimiser."""
    train_sine("--run-dir", tmp_path / "whole", evaluated=False)
    train_sine("--iterations", 4, "--run-dir", tmp_path / "old", evaluated=False)
    state = load_checkpoint(tmp_path / "old" / "checkpoint.pt")
    adam = state["learner"]["adam"]
    state["learner"]["adam"] = {
        number: {"step": adam["count"], "exp_avg": adam["mean"][name], "exp_avg_sq": adam["square"][name]}
        for number, name in enumerate(state["learner"]["theta"])
    }
    save_checkpoint(tmp_path / "old" / "checkpoint.pt", state)
    main(sine.EXPERIMENT, ["--resume", str(tmp_path / "old"), "--iterations", "6"], evaluated=False)
    assert_same_run(tmp_path / "old", tmp_path / "whole")


OLD = {  # the settings of a run of sine, as commit 2611d6a wrote them
    "seed": 3, "iterations": 20, "tasks": 7, "learner": "maml++", "shots": 4, "queries": 0, "inner_steps": 2,
    "inner_step_size": 0.02, "later_factor": 0.7, "multi_step_iterations": 9, "learning_rate": 0.002,
    "final_learning_rate": 0.0, "clip": 0.0, "device": "auto", "threads": 1, "task_chunk": 0, "shrink_chunks": False,
    "record_every": 1, "checkpoint_every": 10, "evaluate_every": 0, "evaluation_tasks": 20, "evaluation_shots": 6,
    "evaluation_steps": 3, "evaluation_statistics": "batch", "hidden_sizes": [5],
}  # fmt: skip


@pytest.mark.parametrize("learner", [*METHODS, "pretrained", "oracle"])
def test_settings_of_older_runs_are_migrated(learner):
    config = {"experiment": "sine", "settings": {**OLD, "learner": learner, "clip": 2.0}}
    found = to_flat(settings_of(sine.EXPERIMENT, config))
    assert (found["method"], found["num_tasks"], found["extra_step_scale"]) == (learner, 7, 0.7)
    assert (found["final_learning_rate"], found["clip"]) == (None, 2.0)
    assert found.get("inner_steps", 2) == 2
    assert ("multi_step_iterations" in found) == (learner == "maml++")
    unnamed = {"seed", "tasks", "learner", "later_factor", "final_learning_rate", "clip", "hidden_sizes"}
    for name in found.keys() & (OLD.keys() - unnamed):
        assert found[name] == OLD[name]


def test_recipes_have_the_settings_of_the_paper():
    values = sine.EXPERIMENT.values()
    names = ("num_tasks", "shots", "inner_step_size", "inner_steps", "iterations", "extra_step_scale")
    assert [values[name] for name in names] == [25, 10, 0.01, 1, 70_000, 1.0]
    assert sine.EXPERIMENT.configure().episodes.training_queries == 10
    of_the_paper = [recipe for recipe in sine.RECIPES.values() if "curves" not in recipe.settings]
    assert len(of_the_paper) == 4
    for recipe in of_the_paper:
        assert [changes["evaluation_shots"] for changes in recipe.evaluations.values()] == [5, 10, 20]


def test_memory_that_is_too_small_names_the_flag(monkeypatch):
    def fails(learner):
        raise torch.OutOfMemoryError("no memory")

    settings = small_settings()
    learner = sine.EXPERIMENT.build(settings)
    monkeypatch.setattr(FewShotLearner, "step", fails)
    with pytest.raises(DeviceMemoryError, match="--num-tasks"):
        sine.EXPERIMENT.advance(settings, learner)
