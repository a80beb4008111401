"""Learned optimisers from the command line."""

import json

import pytest

from metarl.experiments import evaluate, open_run, optimiser
from metarl.experiments.runner.training import main
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
    for name, size in optimiser.TUNED.items():
        method = optimiser.EXPERIMENT.build(optimiser.EXPERIMENT.configure(name, threads=1)).method
        assert (method.algorithm, method.step_size) == (name, size)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--method", "adamw"], "the nearest is adam"),
        (["--method", "adam", "--lstm-units", "3"], "--lstm-units has no effect with --method adam"),
        (["--unroll", "0"], "unroll = 0; allowed: a whole number, at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(words, line, capsys):
    assert line in error_of(capsys, main, optimiser.EXPERIMENT, words)
