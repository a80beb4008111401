"""Learned optimisers from the command line."""

import json

import pytest
import torch

from metarl.experiments import evaluate, open_run, optimiser
from metarl.experiments.runner.training import main
from metarl.few_shot.classifier_functions import CLASSIFIER_LOSS
from metarl.few_shot.methods.learned_optimisers import LearnedOptimiser, TunedOptimiser
from tests.experiments.runner.helpers import error_of

TINY = ["--num-tasks", "2", "--optimisation-steps", "4", "--unroll", "2", "--threads", "1", "--record-every", "1"]
TINY += ["--checkpoint-every", "1", "--evaluate-every", "1", "--evaluation-tasks", "3", "--evaluation-steps", "4"]


@pytest.mark.parametrize(("name", "kind"), [("lstm", LearnedOptimiser), ("adam", TunedOptimiser)])
def test_an_optimiser_trains_resumes_and_is_evaluated_after_every_step(name, kind, tmp_path):
    directory = tmp_path / "run"
    words = [*TINY, "--method", name, *(["--lstm-units", "3"] if name == "lstm" else [])]
    main(optimiser.EXPERIMENT, [*words, "--iterations", "1", "--run-dir", str(directory)], evaluated=False)
    main(optimiser.EXPERIMENT, ["--resume", str(directory), "--iterations", "2"])
    _, _, learner = open_run(directory)
    assert type(learner.method) is kind
    assert (learner.iteration, learner.method.total_steps, learner.method.unroll) == (2, 4, 2)
    record = json.loads((directory / "evaluation.json").read_text())
    assert [key for key in record if key.startswith("mse/")] == [f"mse/step_{step}" for step in range(5)]
    assert (directory / "curves.png").exists()
    evaluate.main([str(directory), "--steps", "6", "--output", str(tmp_path / "more")])
    assert "mse/step_6" in json.loads((tmp_path / "more" / "evaluation.json").read_text())


def test_the_paper_recipe_and_the_tuned_optimisers():
    settings = optimiser.EXPERIMENT.configure()
    assert (settings.episodes.num_tasks, settings.method.inner_steps, settings.method.unroll) == (128, 100, 20)
    for name, size in optimiser.TUNED["quadratics"].items():
        method = optimiser.EXPERIMENT.build(optimiser.EXPERIMENT.configure(name, threads=1)).method
        assert (method.algorithm, method.step_size) == (name, size)
    for name, size in optimiser.TUNED["classifiers"].items():
        settings = optimiser.EXPERIMENT.configure(f"{name}, classifiers")
        assert (settings.method.algorithm, settings.method.step_size, settings.run.iterations) == (name, size, 0)
        assert optimiser.EXPERIMENT.criterion_of(settings) == CLASSIFIER_LOSS


@pytest.fixture
def characters(monkeypatch):
    """Small images in place of Omniglot's."""
    numbers = torch.arange(12 * 20, dtype=torch.uint8).view(12, 20, 1, 1, 1)
    images = numbers.expand(12, 20, 28, 28, 1).contiguous()
    monkeypatch.setattr(optimiser, "omniglot", lambda *_: dict.fromkeys(("train", "validation", "test"), images))


def test_small_classifiers_are_minimised_resumed_and_evaluated(characters, tmp_path):
    directory = tmp_path / "run"
    words = [*TINY, "--functions", "classifiers", "--pixels", "3", "--hidden-units", "2", "--lstm-units", "3"]
    main(optimiser.EXPERIMENT, [*words, "--iterations", "1", "--run-dir", str(directory)], evaluated=False)
    main(optimiser.EXPERIMENT, ["--resume", str(directory), "--iterations", "2"])
    _, _, learner = open_run(directory)
    shapes = [tuple(value.shape) for value in learner.method.module.parameters()]
    assert shapes == [(2, 9), (2,), (10, 2), (10,)]
    assert not any(value.any() for value in learner.method.module.parameters())
    record = json.loads((directory / "evaluation.json").read_text())
    assert [key for key in record if key.startswith("cross_entropy/")] == [f"cross_entropy/step_{s}" for s in range(5)]
    assert record["cross_entropy/step_0"]["mean"] == pytest.approx(2.3, abs=0.05)
    assert (directory / "curves.png").exists()
    assert (directory / "best.pt").exists()
    assert "cross_entropy/step_4" in (directory / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--method", "adamw"], "the nearest is adam"),
        (["--method", "adam", "--lstm-units", "3"], "--lstm-units has no effect with --method adam"),
        (["--pixels", "3"], "--pixels has no effect with --functions quadratics"),
        (["--functions", "classifier"], "the nearest is classifiers"),
        (["--functions", "classifiers", "--data", "none-there"], "put images_background.zip"),
        (["--unroll", "0"], "unroll = 0; allowed: a whole number, at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(words, line, capsys):
    assert line in error_of(capsys, main, optimiser.EXPERIMENT, words)
