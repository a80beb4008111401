"""Proto-MAML, iMAML and the LSTM meta-learner on images, from the command line."""

import json

import pytest
import torch

from metarl.experiments import mini_imagenet, omniglot, open_run
from metarl.experiments.runner.image_methods import IMAGE_METHODS
from metarl.experiments.runner.training import main
from metarl.few_shot.methods.implicit import IMAML
from metarl.few_shot.methods.meta_lstm import MetaLSTM
from metarl.few_shot.methods.proto_maml import ProtoMAML
from tests.experiments.runner.few_shot_runs import make_photographs
from tests.experiments.runner.helpers import error_of

KINDS = {"proto-maml": ProtoMAML, "imaml": IMAML, "meta-lstm": MetaLSTM}
TINY = ["--ways", "2", "--filters", "4", "--evaluation-tasks", "3", "--evaluation-steps", "2", "--threads", "1"]
TINY += ["--record-every", "1", "--queries", "1", "--num-tasks", "2", "--inner-steps", "2", "--checkpoint-every", "1"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Flags that say where the images are."""
    folder = tmp_path_factory.mktemp("images")
    make_photographs(folder / "data")
    return ["--data", str(folder / "data"), "--cache", str(folder / "cache")]


@pytest.mark.parametrize("name", KINDS)
def test_every_method_trains_resumes_and_is_evaluated(name, places, tmp_path):
    directory, words = tmp_path / "run", [*TINY, *places, "--method", name, "--evaluate-every", "1"]
    main(mini_imagenet.EXPERIMENT, [*words, "--iterations", "1", "--run-dir", str(directory)], evaluated=False)
    main(mini_imagenet.EXPERIMENT, ["--resume", str(directory), "--iterations", "2"])
    experiment, settings, learner = open_run(directory)
    assert type(learner.method) is KINDS[name]
    assert (learner.num_tasks, learner.iteration, learner.method.inner_steps) == (2, 2, 2)
    assert experiment.judged_step(settings) == 2
    record = json.loads((directory / "evaluation.json").read_text())
    assert [key for key in record if key.startswith("accuracy/")] == [f"accuracy/step_{step}" for step in range(3)]
    assert record["transductive"]


def test_proto_maml_trains_alike_whatever_the_ways_of_test_tasks(places, tmp_path):
    found = []
    for ways, more in (("3", []), ("2", ["--training-ways", "3"])):
        directory = tmp_path / ways
        words = [*TINY, *places, "--method", "proto-maml", "--ways", ways, *more, "--iterations", "2"]
        main(mini_imagenet.EXPERIMENT, [*words, "--run-dir", str(directory)], evaluated=False)
        _, _, learner = open_run(directory)
        assert learner.sample(1, "test").query.targets.max() == int(ways) - 1
        found.append(learner.theta)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_all_methods_are_tried():
    assert list(IMAGE_METHODS) == list(KINDS)


def test_recipes_and_settings():
    implicit = omniglot.EXPERIMENT.configure("5-way 1-shot, iMAML")
    assert (implicit.method.inner_steps, implicit.method.regularisation, implicit.method.cg_iterations) == (16, 2.0, 5)
    learned = omniglot.EXPERIMENT.configure("5-way 1-shot, LSTM meta-learner")
    assert (learned.method.inner_steps, learned.network.filters, learned.episodes.training_queries) == (12, 32, 15)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--method", "imaml", "--regularisation", "0"], "regularisation = 0.0; allowed: more than 0"),
        (
            ["--method", "meta-lstm", "--inner-step-size", "0.1"],
            "--inner-step-size has no effect with --method meta-lstm",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(words, line, places, capsys):
    assert line in error_of(capsys, main, omniglot.EXPERIMENT, [*words, *places])
