"""Methods that embed, from the command line: training, resuming, evaluation, recipes, refusals."""

import json
from types import SimpleNamespace

import pytest
import torch

from metarl.core.settings import SettingError
from metarl.experiments import evaluate, mini_imagenet, omniglot, open_run
from metarl.experiments.runner.embedding_methods import EMBEDDING_METHODS
from metarl.experiments.runner.training import main
from metarl.few_shot.methods.centroids import Prototypical, SimpleShot
from metarl.few_shot.methods.matching import FullContextMatching, Matching
from metarl.few_shot.methods.meta_transfer import MetaTransfer
from metarl.few_shot.methods.relation import Relation
from metarl.few_shot.methods.ridge import RidgeRegression
from metarl.few_shot.methods.siamese import Siamese
from tests.experiments.runner.few_shot_runs import make_photographs
from tests.experiments.runner.helpers import error_of

KINDS = {
    "prototypical": Prototypical,
    "matching": Matching,
    "matching-fce": FullContextMatching,
    "relation": Relation,
    "siamese": Siamese,
    "r2-d2": RidgeRegression,
    "simple-shot": SimpleShot,
    "mtl": MetaTransfer,
}
WORDS = dict.fromkeys(KINDS, ("--training-ways", "3", "--queries", "1")) | {
    "siamese": ["--pairs", "2"],
    "simple-shot": ["--batch-size", "6"],
    "mtl": ["--batch-size", "6", "--pretraining-iterations", "0", "--queries", "1"],
}
TINY = [
    "--ways",
    "2",
    "--filters",
    "4",
    "--evaluation-tasks",
    "3",
    "--threads",
    "1",
    "--record-every",
    "1",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Flags that say where the images are."""
    folder = tmp_path_factory.mktemp("images")
    make_photographs(folder / "data")
    return ["--data", str(folder / "data"), "--cache", str(folder / "cache")]


@pytest.mark.parametrize("name", KINDS)
def test_every_method_trains_resumes_and_is_evaluated(name, places, tmp_path):
    directory, words = tmp_path / "run", [*TINY, *places, "--method", name, *WORDS[name]]
    every = ["--checkpoint-every", "1", "--evaluate-every", "1"]
    main(mini_imagenet.EXPERIMENT, [*words, *every, "--iterations", "1", "--run-dir", str(directory)])
    main(mini_imagenet.EXPERIMENT, ["--resume", str(directory), "--iterations", "2"])
    experiment, settings, learner = open_run(directory)
    assert type(learner.method) is KINDS[name]
    assert (learner.num_tasks, learner.iteration) == (1, 2)
    assert experiment.judged_step(settings) == 0
    record = json.loads((directory / "evaluation.json").read_text())
    assert [key for key in record if key.startswith("accuracy/")] == ["accuracy/step_0"]
    assert len(record["accuracy/step_0"]["per_task"]) == 3
    assert (record["ways"], record["transductive"]) == (2, False)
    assert (directory / "best.pt").exists()
    evaluate.main([str(directory), "--shots", "2", "--output", str(tmp_path / "more")])
    assert json.loads((tmp_path / "more" / "evaluation.json").read_text())["shots"] == 2


def test_meta_transfer_is_resumed_after_its_first_stage(places, tmp_path):
    words = [*TINY, *places, "--method", "mtl", "--batch-size", "6", "--queries", "1", "--pretraining-iterations", "2"]
    words += ["--checkpoint-every", "1"]
    for name, iterations in (("whole", "5"), ("parts", "3")):
        run = ["--iterations", iterations, "--run-dir", str(tmp_path / name)]
        main(mini_imagenet.EXPERIMENT, [*words, *run], evaluated=False)
    main(mini_imagenet.EXPERIMENT, ["--resume", str(tmp_path / "parts"), "--iterations", "5"], evaluated=False)
    whole, parts = (open_run(tmp_path / name)[2] for name in ("whole", "parts"))
    assert whole.iteration == parts.iteration == 5
    assert all(torch.equal(value, parts.theta[name]) for name, value in whole.theta.items())


def test_all_methods_are_tried():
    assert list(EMBEDDING_METHODS) == list(KINDS)


def test_recipes_have_the_published_settings():
    names = [name for name in KINDS if name != "mtl"]
    rows = [f"{ways}-way {shots}-shot, {name}" for name in names for ways in (5, 20) for shots in (1, 5)]
    assert set(rows) <= set(omniglot.RECIPES)
    found = omniglot.EXPERIMENT.configure("20-way 5-shot, prototypical")
    assert (found.episodes.ways, found.episodes.shots) == (20, 5)
    assert (found.method.training_ways, found.episodes.training_queries) == (60, 5)
    assert found.files.split == "vinyals"
    relation = [omniglot.EXPERIMENT.configure(f"{row}-shot, relation") for row in ("5-way 1", "5-way 5", "20-way 5")]
    assert [settings.episodes.training_queries for settings in relation] == [19, 15, 5]
    assert [settings.method.training_ways for settings in relation] == [None] * 3
    assert omniglot.RECIPES["20-way 1-shot, prototypical"].published == (0.96,)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--method", "prototypical", "--training-ways", "9", "--queries", "1"], "9 ways of 3 train classes"),
        (["--method", "siamese"], "pairs = 128; allowed: at most the 3 training classes"),
        (["--method", "prototypical", "--evaluation-statistics", "per-step"], "--evaluation-statistics = per-step"),
        (["--method", "prototypical", "--inner-steps", "2"], "--inner-steps has no effect with --method prototypical"),
        (
            ["--method", "prototypical", "--batch-norm", "eval"],
            "--batch-norm = 'eval'; allowed: running, support, batch",
        ),
        (
            ["--method", "mtl", "--pretraining-iterations", "7", "--iterations", "7"],
            "--pretraining-iterations = 7; allowed: fewer than --iterations = 7",
        ),
        (["--method", "mtl", "--training-ways", "3"], "--training-ways has no effect with --method mtl"),
        (
            ["--method", "mtl", "--no-scales-and-shifts", "--scale-rate", "1"],
            "--scale-rate has no effect with --scales-and-shifts False",
        ),
        (["--method", "protypical"], "the nearest is prototypical"),
        (["--method", "prototypical", "--num-tasks", "3"], "--num-tasks has no effect with --method prototypical"),
    ],
)
def test_what_cannot_be_gets_one_line_before_training(places, tmp_path, capsys, words, line):
    queries = [] if "siamese" in words else ["--queries", "1"]
    arguments = [*TINY, *queries, *places, *words, "--run-dir", str(tmp_path / "run")]
    assert line in error_of(capsys, main, mini_imagenet.EXPERIMENT, arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "transductive"),
    [
        ({"method": "prototypical", "batch_norm": "batch"}, True),
        ({"method": "relation", "batch_norm": "support"}, False),
        ({"method": "maml"}, True),
        ({"method": "maml", "evaluation_statistics": "per-step"}, False),
    ],
)
def test_results_say_their_characters_and_whether_they_are_transductive(changes, transductive):
    settings = omniglot.EXPERIMENT.configure(**changes, split="vinyals")
    found = omniglot.EXPERIMENT.record(settings, SimpleNamespace(iteration=3))
    assert (found["transductive"], found["characters"], found["iteration"]) == (transductive, "vinyals", 3)


def test_linear_layers_have_no_stride():
    with pytest.raises(SettingError, match="--strided has no effect with --network mlp"):
        omniglot.EXPERIMENT.configure(method="prototypical", network="mlp", strided=True)
    assert omniglot.EXPERIMENT.configure(method="prototypical", strided=True).method.strided


def test_relations_need_maps():
    settings = omniglot.EXPERIMENT.configure(method="relation", network="mlp")
    with pytest.raises(SettingError, match="--network = mlp"):
        omniglot.network(settings, None)
