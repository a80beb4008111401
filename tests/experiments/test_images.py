"""Runs on pictures of one's own: folders, splits, every method, resuming, the records, and refusals."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image

from metarl.core.settings import SettingError
from metarl.experiments import evaluate, images, open_run
from metarl.experiments.runner.config_file import settings_of
from metarl.experiments.runner.embedding_methods import EMBEDDING_METHODS
from metarl.experiments.runner.training import main
from metarl.few_shot.images.image_classes import ImageClasses
from tests.experiments.runner.helpers import assert_same_run, error_of, parameters

SIZES = {
    "size": 16,
    "colour": "grey",
    "ways": 2,
    "shots": 1,
    "filters": 4,
    "evaluation-tasks": 2,
    "threads": 1,
    "iterations": 2,
    "record-every": 1,
    "checkpoint-every": 1,
    "evaluate-every": 0,
}
TINY = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
KINDS = ("PNG", "jpg", "bmp", "webp")


def make_pictures(folder, classes=8):
    """Class N has N + 6 pictures of mixed sizes and kinds, brighter from class to class, with a stripe."""
    for number in range(classes):
        place = folder / f"c{number}"
        place.mkdir(parents=True)
        for index in range(number + 6):
            picture = Image.new("RGB", (20 + index, 18), (30 * number, 20 * number, 10))
            picture.paste((255, 255, 255), (0, index, 20, index + 2))
            picture.save(place / f"{index}.{KINDS[index % 4]}")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    make_pictures(folder / "data")
    return ["--data", str(folder / "data"), "--cache", str(folder / "cache")]


@pytest.fixture(scope="module")
def run(places, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "prototypical"
    main(images.EXPERIMENT, [*TINY, *places, "--queries", "1", "--run-dir", str(directory)])
    return directory


def test_a_run_keeps_unequal_classes_and_records_how_they_were_split(run, places):
    _, settings, learner = open_run(run)
    held = learner.task_distribution.images
    sizes = {name: size for of in held.values() for name, size in zip(of.names, of.sizes, strict=True)}
    assert sizes == {f"c{number}": number + 6 for number in range(8)}
    assert {split: len(of) for split, of in held.items()} == {"train": 4, "validation": 2, "test": 2}
    assert isinstance(held["train"], ImageClasses)
    assert held["train"].images.shape[1:] == (16, 16, 1)
    files = json.loads((run / "config.json").read_text())["settings"]["files"]
    assert (files["split_seed"], files["held_out_share"], files["size"], files["colour"]) == (0, 0.2, 16, "grey")
    record = json.loads((run / "evaluation.json").read_text())
    assert record["classes"] == {split: list(of.names) for split, of in held.items()}
    assert settings.method.training_ways is None
    for name in ("predictions", "shots_and_ways", "adaptation"):
        assert (run / f"{name}.png").stat().st_size > 5_000


def test_classes_that_changed_sides_since_the_run_began_are_refused(run, places, tmp_path, capsys):
    shutil.copytree(run, copied := tmp_path / "run")
    config = json.loads((copied / "config.json").read_text())
    moved = config["classes"]["train"].pop()
    config["classes"]["test"].append(moved)
    (copied / "config.json").write_text(json.dumps(config))
    for call in (
        (evaluate.main, [str(copied)]),
        (main, images.EXPERIMENT, ["--resume", str(copied), "--iterations", "9"]),
    ):
        assert f"class {moved} is of train now and was of test" in error_of(capsys, *call)


def test_what_is_read_and_resized_is_said(places, tmp_path, capsys):
    main(images.EXPERIMENT, [*TINY, *places, "--iterations", "0", "--run-dir", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "classes of 4 train, 2 validation, 2 test, dealt by their names and the seed 0" in printed
    assert "pictures of 20 x 18 to 32 x 18 pixels are resized to 16 x 16 grey" in printed


def test_another_seed_splits_otherwise(places):
    def names(**changes):
        settings = images.EXPERIMENT.configure(
            ways=2, shots=1, size=16, colour="grey", filters=4, threads=1, data=places[1], cache=places[3], **changes
        )
        tasks = images.training_tasks(settings, "cpu")
        return {split: of.names for split, of in tasks.images.items()}

    assert names(split_seed=0) == names(split_seed=0) != names(split_seed=1)
    assert len(names(held_out_share=0.37)["test"]) == 3
    assert len(names(held_out_share=0.1)["test"]) == 2  # as many as ways, at least


OPTIONS = {
    "siamese": [],
    "simple-shot": ["--batch-size", "4"],
    "maml++": ["--inner-steps", "2"],
    "mtl": ["--batch-size", "4", "--pretraining-iterations", "0"],
}


def words_of(name):
    """Flags of a tiny run with a method, which has one iteration."""
    words = [*TINY, "--method", name, *OPTIONS.get(name, []), "--iterations", "1", "--evaluate-every", "0"]
    words += ["--num-tasks", "2"] if name in ("maml", "classifier", "maml++", "mann", "snail") else []
    return words + (["--queries", "1"] if name not in ("siamese", "simple-shot", "neural-statistician") else [])


@pytest.mark.parametrize(
    "name", ["maml", "classifier", "maml++", "mann", "snail", "neural-statistician", *EMBEDDING_METHODS]
)
def test_every_method_trains(name, places, tmp_path):
    main(images.EXPERIMENT, [*words_of(name), *places, "--run-dir", str(tmp_path / "run")], evaluated=False)
    assert all(torch.isfinite(value).all() for value in parameters(tmp_path / "run").values())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["method"]["variant"] == name


@pytest.mark.parametrize("name", ["maml", "siamese"])
def test_a_resumed_run_is_one_that_never_stopped(name, places, tmp_path):
    words = [*words_of(name), *places, "--evaluate-every", "1"]
    main(images.EXPERIMENT, [*words, "--iterations", "2", "--run-dir", str(tmp_path / "whole")], evaluated=False)
    main(images.EXPERIMENT, [*words, "--run-dir", str(tmp_path / "parts")], evaluated=False)
    main(images.EXPERIMENT, ["--resume", str(tmp_path / "parts"), "--iterations", "2"], evaluated=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_evaluation_takes_other_shots_and_writes_curves(run, tmp_path):
    evaluate.main([str(run), "--shots", "2", "--output", str(tmp_path / "two")])
    record = json.loads((tmp_path / "two" / "evaluation.json").read_text())
    assert record["shots"] == 2
    assert record["curves"]["shots"]["counts"] == [1, 2, 3]
    assert record["curves"]["ways"]["counts"] == [2]
    assert all(0 <= mean <= 1 for mean in record["curves"]["shots"]["mean"])


def test_recipes_are_prototypes_and_maml():
    prototypes, maml = (images.EXPERIMENT.configure(name) for name in ("", "maml"))
    assert (type(prototypes.method), type(maml.method).__name__) == (images.OwnPrototypes, "GradientDescent")
    assert (prototypes.episodes.ways, prototypes.episodes.shots) == (5, 5)
    assert (maml.method.inner_steps, maml.evaluation.inner_steps) == (5, 5)


def test_siamese_networks_take_two_images_of_each_class(places):
    changes = {"data": places[1], "cache": places[3], "method": "siamese", "size": 16, "colour": "grey"}
    for pairs, found in ((None, 4), (3, 3)):
        settings = images.EXPERIMENT.configure(**changes, ways=2, shots=1, filters=4, threads=1, pairs=pairs)
        assert images.EXPERIMENT.build(settings)._training_tasks.ways == found


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--ways", "3"], r"data has 8 classes .* allowed: at least 3 x 3, for tasks of 3 classes"),
        (["--shots", "4"], r"--ways = 2, --shots = 4: 4 support and 5 query images of \d in \w+ class c\d; allowed"),
        (["--colour", "gray"], r"--colour = 'gray'; allowed: rgb, grey; the nearest is grey"),
        (["--size", "8"], r"--size = 8; allowed: a whole number, at least 16"),
        (["--data", "none-there"], r"none-there is no folder"),
        (["--held-out-share", "0.6"], r"--held-out-share = 0.6"),
        (["--method", "siamese", "--pairs", "9"], r"pairs = 9; allowed: at most the 4 training classes"),
    ],
)
def test_what_cannot_be_gets_one_line_before_training(places, tmp_path, capsys, words, line):
    arguments = [*TINY, *places, *words, "--run-dir", str(tmp_path / "run")]
    assert re.search(line, error_of(capsys, main, images.EXPERIMENT, arguments))
    assert not (tmp_path / "run").exists()


def test_the_folder_must_be_named(tmp_path, capsys):
    assert "--data is missing" in error_of(capsys, main, images.EXPERIMENT, [*TINY, "--run-dir", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"method": "siamese", "queries": 3}, "--queries has no effect with --method siamese"),
        ({"method": "simple-shot", "queries": 3}, "--queries has no effect with --method simple-shot"),
        ({"num_tasks": 3}, "--num-tasks has no effect with --method prototypical"),
        ({"evaluation_steps": 3}, "--evaluation-steps has no effect with --method prototypical"),
    ],
)
def test_flags_without_effect_are_refused(changes, line):
    with pytest.raises(SettingError, match=line):
        images.EXPERIMENT.configure(**changes)
    assert images.EXPERIMENT.configure("maml", num_tasks=3, evaluation_steps=3).episodes.num_tasks == 3


def test_a_run_whose_settings_have_no_effect_is_still_opened(run):
    config = json.loads((run / "config.json").read_text())
    config["settings"]["episodes"]["num_tasks"] = 9
    assert settings_of(images.EXPERIMENT, config).episodes.num_tasks == 9


def test_steps_of_a_method_without_any_are_refused_in_an_evaluation(run, capsys):
    before = sorted(path.name for path in run.iterdir())
    line = error_of(capsys, evaluate.main, [str(run), "--steps", "3"])
    assert "--steps has no effect with --method prototypical" in line
    assert sorted(path.name for path in run.iterdir()) == before


def test_decoders_have_an_even_number_of_filters(places, tmp_path, capsys):
    words = ["--method", "neural-statistician", "--decoder-filters", "3", "--run-dir", str(tmp_path / "run")]
    assert "--decoder-filters = 3; allowed: an even number" in error_of(
        capsys, main, images.EXPERIMENT, [*TINY, *places, *words]
    )
