"""Methods that read sequences or sets, from the command line: training, resuming, evaluation, recipes, refusals."""

import json

import pytest
import torch

from metarl.core.settings import SettingError
from metarl.experiments import evaluate, mini_imagenet, omniglot, open_run
from metarl.experiments.runner.memory_methods import MEMORY_METHODS
from metarl.experiments.runner.report import instance_lines
from metarl.experiments.runner.result_plots import by_instance
from metarl.experiments.runner.training import main
from metarl.few_shot.methods.memory_module import MemoryModule
from metarl.few_shot.methods.memory_networks import LSTMNet, MemoryNet
from metarl.few_shot.methods.meta_networks import MetaNetworks
from metarl.few_shot.methods.sequences import SequenceClassifier, ShuffledEpisodes
from metarl.few_shot.methods.snail import SNAIL, SNAILNet
from metarl.few_shot.methods.statistician import NeuralStatistician
from tests.experiments.runner.few_shot_runs import make_photographs
from tests.experiments.runner.helpers import error_of

SMALL = {"hidden-size": 4, "pixels": 3}
KINDS = {
    "mann": (SequenceClassifier, {**SMALL, "memory-slots": 5, "memory-width": 3, "read-heads": 2}, 2),
    "mann-lstm": (SequenceClassifier, SMALL, 2),
    "memory-module": (MemoryModule, {"filters": 4, "key-size": 5, "memory-slots": 7}, 2),
    "snail": (SNAIL, {"filters": 4}, 2),
    "metanet": (MetaNetworks, {"fast-filters": 2}, 2),
    "neural-statistician": (NeuralStatistician, {"filters": 4, "sets": 3, "set-size": 2, "decoder-filters": 2}, 1),
}
FEW = {"ways": 2, "num-tasks": 2, "evaluation-tasks": 3, "threads": 1, "record-every": 1, "queries": 1}
TINY = [word for flag, value in FEW.items() for word in (f"--{flag}", str(value))]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Flags that say where the images are."""
    folder = tmp_path_factory.mktemp("images")
    make_photographs(folder / "data")
    return ["--data", str(folder / "data"), "--cache", str(folder / "cache")]


def words_of(name):
    """Flags of a small run; the statistician has sets in place of tasks and queries."""
    idle = ("num-tasks", "queries") if name == "neural-statistician" else ()
    chosen = {flag: value for flag, value in FEW.items() if flag not in idle} | KINDS[name][1]
    return [word for flag, value in chosen.items() for word in (f"--{flag}", str(value))]


@pytest.mark.parametrize("name", KINDS)
def test_every_method_trains_resumes_and_is_evaluated(name, places, tmp_path):
    directory, words = tmp_path / "run", [*places, "--method", name, *words_of(name)]
    every = ["--checkpoint-every", "1", "--evaluate-every", "1"]
    main(mini_imagenet.EXPERIMENT, [*words, *every, "--iterations", "1", "--run-dir", str(directory)])
    main(mini_imagenet.EXPERIMENT, ["--resume", str(directory), "--iterations", "2"])
    experiment, settings, learner = open_run(directory)
    kind, _, num_tasks = KINDS[name]
    assert type(learner.method) is kind
    assert (learner.num_tasks, learner.iteration) == (num_tasks, 2)
    assert isinstance(learner.task_distribution, ShuffledEpisodes) == (name != "neural-statistician")
    assert experiment.judged_step(settings) == 0
    record = json.loads((directory / "evaluation.json").read_text())
    more = {"mann": {"accuracy/instance_1"}, "mann-lstm": {"accuracy/instance_1"}}
    more["neural-statistician"] = {"accuracy/bound"}
    assert {key for key in record if key.startswith("accuracy/")} == {"accuracy/step_0", *more.get(name, ())}
    assert (record["ways"], record["transductive"]) == (2, False)
    assert (directory / "instances.png").exists() == name.startswith("mann")
    curves = record["curves"]
    assert curves["shots"]["counts"] == [1, 2, 3]
    assert ("ways" in curves) == (name in ("memory-module", "neural-statistician"))
    evaluate.main([str(directory), "--shots", "2", "--output", str(tmp_path / "more")])
    found = json.loads((tmp_path / "more" / "evaluation.json").read_text())
    assert found["shots"] == 2
    assert ("accuracy/instance_2" in found) == name.startswith("mann")


def test_all_methods_are_tried():
    assert list(MEMORY_METHODS) == list(KINDS)


def test_recipes_have_the_published_settings():
    mann, lstm = (omniglot.EXPERIMENT.configure(f"5-way, {name}") for name in ("mann", "mann-lstm"))
    assert mann.episodes.shots * mann.episodes.ways == 50
    assert (mann.episodes.num_tasks, mann.run.iterations) == (16, 25_000)
    network = mann.method.network((28, 28, 1), 5)
    assert isinstance(network, MemoryNet)
    assert (network.slots, network.width, network.reads, network.hidden) == (128, 40, 4, 200)
    assert isinstance(lstm.method.network((28, 28, 1), 5), LSTMNet)
    module = omniglot.EXPERIMENT.configure("5-way, memory-module")
    assert (module.episodes.shots * module.episodes.ways, module.judged_shots, module.method.margin) == (30, 1, 0.1)
    assert omniglot.RECIPES["20-way 5-shot, snail"].published == (0.9936,)
    for name in ("5-way 5-shot, snail", "20-way 1-shot, metanet", "20-way, neural-statistician"):
        assert omniglot.EXPERIMENT.configure(name).files.split == "vinyals"


def test_snail_reaches_all_of_a_sequence():
    settings = omniglot.EXPERIMENT.configure("5-way 5-shot, snail", filters=4)
    episodes = ShuffledEpisodes({"train": make_images()}, 5, 5, 1)
    method = settings.method.build(omniglot.network(settings, episodes), episodes)
    assert isinstance(method.network, SNAILNet)
    assert max(getattr(block, "dilation", 0) for block in method.network.blocks) == 16


def make_images():
    return torch.zeros(5, 20, 28, 28, 1, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--method", "neural-statistician"], "--num-tasks has no effect with --method neural-statistician"),
        (["--method", "mann", "--shots", "4"], "4 support and 1 query images of 4"),
        (["--method", "mann", "--batch-norm", "support"], "--batch-norm has no effect with --method mann"),
        (["--method", "snail", "--memory-slots", "3"], "--memory-slots has no effect with --method snail"),
        (["--method", "mann", "--evaluation-statistics", "per-step"], "--evaluation-statistics = per-step"),
        (["--method", "memory-module", "--margin", "0"], "--margin = 0"),
        (["--method", "snail", "--compile"], "--compile = True with SNAIL"),
        (["--method", "mannn"], "the nearest is mann"),
    ],
)
def test_what_cannot_be_gets_one_line_before_training(places, tmp_path, capsys, words, line):
    arguments = [*TINY, *places, *words, "--run-dir", str(tmp_path / "run")]
    assert line in error_of(capsys, main, mini_imagenet.EXPERIMENT, arguments)
    assert not (tmp_path / "run").exists()


def test_networks_of_their_own_are_no_linear_layers():
    for name in ("mann", "metanet"):
        settings = omniglot.EXPERIMENT.configure(method=name, network="mlp")
        with pytest.raises(SettingError, match="--network = mlp"):
            omniglot.network(settings, None)


def test_the_report_shows_accuracy_by_instance_of_rows_that_have_it():
    def value(mean):
        return {"mean": mean, "standard_error": None}

    entries = {
        "5-way, mann": {"seeds": [0], "accuracy/step_0": value(0.9)}
        | {f"accuracy/instance_{number}": value(number / 20) for number in (10, *range(1, 10))},
        "5-way 1-shot, snail": {"seeds": [0], "accuracy/step_0": value(0.9)},
    }
    [line] = instance_lines(entries)
    assert line.means == [number / 20 for number in range(1, 11)]
    axes = by_instance("title", [line]).axes[0]
    assert axes.get_lines()[0].get_xdata().tolist() == list(range(1, 11))
