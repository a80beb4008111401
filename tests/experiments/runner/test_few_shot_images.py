"""Few-shot runs on images from the command line, with tiny photographs."""

import json
import re

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl.core.distributed import Processes
from metarl.core.settings import SettingError
from metarl.experiments import evaluate, mini_imagenet, omniglot, open_run
from metarl.experiments.runner.config_file import settings_of
from metarl.experiments.runner.few_shot_images import training_episodes
from metarl.experiments.runner.flat_settings import to_flat
from metarl.experiments.runner.training import main
from metarl.few_shot.methods.sequences import ShuffledEpisodes
from metarl.few_shot.tasks import ImageEpisodes
from tests.experiments.runner.few_shot_runs import make_photographs
from tests.experiments.runner.helpers import error_of

SIZES = {
    "ways": 2,
    "queries": 2,
    "filters": 4,
    "evaluation-tasks": 2,
    "num-tasks": 2,
    "threads": 1,
    "iterations": 2,
    "record-every": 1,
    "evaluation-steps": 1,
}
TINY = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Flags that say where the images are."""
    folder = tmp_path_factory.mktemp("images")
    make_photographs(folder / "data")
    return ["--data", str(folder / "data"), "--cache", str(folder / "cache")]


@pytest.fixture(scope="module")
def run(places, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "maml"
    main(mini_imagenet.EXPERIMENT, [*TINY, "--inner-steps", "1", *places, "--run-dir", str(directory)])
    return directory


@pytest.fixture(scope="module")
def classifier(places, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "classifier"
    main(mini_imagenet.EXPERIMENT, [*TINY, "--method", "classifier", *places, "--run-dir", str(directory)])
    return directory


def test_mini_imagenet_from_a_folder(run):
    _, _, learner = open_run(run)
    assert learner.task_distribution.images["train"].shape == (3, 4, 84, 84, 3)
    record = json.loads((run / "evaluation.json").read_text())
    assert len(record["accuracy/step_1"]["per_task"]) == 2
    assert "accuracy/nearest_neighbour" not in record


def test_statistics_per_step_give_other_accuracies(run, tmp_path):
    words = [str(run), "--statistics", "per-step", "--tasks", "30", "--output", str(tmp_path / "fixed")]
    evaluate.main(words)
    evaluate.main([str(run), "--tasks", "30", "--output", str(tmp_path / "batch")])
    fixed, batch = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("fixed", "batch"))
    assert fixed["accuracy/step_1"] != batch["accuracy/step_1"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--statistics", "steps"], r"--statistics = 'steps'; allowed: batch, per-step.*nearest is per-step"),
        (["--shots", "4"], r"--ways = 2, --shots = 4: 4 support and 4 query images of 4"),
        (["--data", "none-there"], r"none-there; put train/, val/ and test/"),
        (["--output", "/proc/none"], r"/proc/none"),
    ],
)
def test_evaluations_that_cannot_be_get_one_line(run, capsys, words, line):
    assert re.search(line, error_of(capsys, evaluate.main, [str(run), *words]))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--ways", "9"], r"--ways = 9, --shots = 1: 9 ways of 3 train classes; allowed: at most 3"),
        (["--shots", "3"], r"--ways = 2, --shots = 3: 3 support and 2 query images of 4 in a train class"),
        (["--evaluation-shots", "3"], r"--ways = 2, --evaluation-shots = 3: 3 support and 3 query images"),
        (["--ways", "1"], r"--ways = 1; allowed: .* at least 2"),
    ],
)
def test_episodes_that_cannot_be_get_one_line_before_training(places, tmp_path, capsys, words, line):
    arguments = [*TINY, *places, *words, "--run-dir", str(tmp_path / "run")]
    assert re.search(line, error_of(capsys, main, mini_imagenet.EXPERIMENT, arguments))
    assert not (tmp_path / "run").exists()


def test_images_that_are_not_there_get_one_line(tmp_path, capsys):
    words = ["--data", str(tmp_path / "none"), "--run-dir", str(tmp_path / "run")]
    assert "put train/, val/ and test/" in error_of(capsys, main, mini_imagenet.EXPERIMENT, words)
    assert "put images_background.zip" in error_of(capsys, main, omniglot.EXPERIMENT, words)


def test_a_classifier_learns_all_classes_and_is_fine_tuned(classifier):
    experiment, settings, learner = open_run(classifier)
    assert learner.theta["head.weight"].shape[0] == 3  # all training classes
    assert learner._training_tasks.size == 2 * 2 * 2  # tasks, ways, queries
    evaluation = experiment.evaluate(settings, learner, "test")
    state = evaluation.learner.adapt(evaluation.tasks.support, 0)[0]
    assert state["head.weight"].shape[:2] == (2, 2)  # tasks, ways
    assert not state["head.weight"].any()
    assert torch.equal(state["blocks.0.norm.shift"][0], learner.theta["blocks.0.norm.shift"])
    record = json.loads((classifier / "evaluation.json").read_text())
    assert record["accuracy/nearest_neighbour"]["mean"] == 1  # classes are of one colour each
    assert record["accuracy/step_0"]["mean"] == 0.5
    scalars = EventAccumulator(str(classifier)).Reload().Scalars("test/accuracy/nearest_neighbour")
    assert [scalar.value for scalar in scalars] == [1]


def test_a_classifier_prints_its_nearest_neighbours(classifier, tmp_path, capsys):
    evaluate.main([str(classifier), "--output", str(tmp_path / "again")])
    shown = capsys.readouterr().out.splitlines()
    assert "nearest_neighbour 1.0000" in shown


def test_a_classifier_has_one_process(places, monkeypatch):
    changes = {"method": "classifier", "ways": 2, "queries": 2, "data": places[1], "cache": places[3]}
    settings = mini_imagenet.EXPERIMENT.configure(**changes)
    monkeypatch.setattr("metarl.experiments.runner.few_shot_images.current", lambda: Processes(0, 2))
    with pytest.raises(SettingError, match="--method = classifier on 2 processes"):
        mini_imagenet.EXPERIMENT.build(settings)


def test_recipes_have_the_settings_of_the_paper():
    names = ("num_tasks", "shots", "inner_step_size", "inner_steps", "iterations", "filters", "clip")
    found = [omniglot.EXPERIMENT.values()[name] for name in names]
    assert found == [32, 1, 2.0, 1, 60_000, 64, None]
    found = [mini_imagenet.EXPERIMENT.values()[name] for name in names]
    assert found == [4, 1, 0.05, 5, 60_000, 32, 10.0]
    assert omniglot.EXPERIMENT.configure("5-way 5-shot").episodes.training_queries == 5
    twenty = omniglot.EXPERIMENT.configure("20-way 5-shot")
    assert (twenty.episodes.ways, twenty.episodes.shots, twenty.method.inner_steps) == (20, 5, 5)
    plus = omniglot.EXPERIMENT.configure("5-way 1-shot, MAML++")
    assert (plus.method.multi_step_iterations, plus.outer.final_learning_rate) == (800, 1e-5)
    assert len(mini_imagenet.RECIPES) == 5


def test_filters_mean_nothing_without_convolutions():
    with pytest.raises(SettingError, match="--filters has no effect with --network mlp"):
        omniglot.EXPERIMENT.configure(network="mlp", filters=3)


@pytest.mark.parametrize(
    ("method", "any_ways", "shuffled"),
    [
        ("maml", False, False),
        ("classifier", True, False),
        ("proto-maml", True, False),
        ("prototypical", True, False),
        ("mtl", False, False),
        ("memory-module", True, True),
        ("mann", False, True),
        ("snail", False, True),
        ("metanet", False, True),
        ("neural-statistician", True, False),
    ],
)
def test_one_place_says_which_episodes_a_method_takes(method, any_ways, shuffled):
    settings = omniglot.EXPERIMENT.configure(method=method)
    assert settings.any_ways == any_ways
    assert settings.kind_of_episodes is (ShuffledEpisodes if shuffled else ImageEpisodes)
    images = {"train": torch.zeros(20, 2, 4, 4, 1, dtype=torch.uint8)}
    assert type(training_episodes(settings, images, "cpu")) is settings.kind_of_episodes


OLD = {  # what commit 2611d6a wrote for images, beside the settings of sine
    "ways": 20, "network": "conv", "filters": 16, "data": "/somewhere", "cache": "", "learner": "classifier",
    "tasks": 3, "inner_steps": 5, "final_learning_rate": 1e-5, "clip": 0.0, "evaluation_shots": 0,
}  # fmt: skip


@pytest.mark.parametrize("network", ["conv", "mlp"])
def test_settings_of_older_runs_are_migrated(network):
    config = {"experiment": "omniglot", "settings": {**OLD, "network": network}}
    found = to_flat(settings_of(omniglot.EXPERIMENT, config))
    assert (found["method"], found["ways"], found["network"], found["data"]) == (
        "classifier",
        20,
        network,
        "/somewhere",
    )
    assert (found["final_learning_rate"], found["clip"]) == (1e-5, None)
    assert ("filters" in found) == (network == "conv")
