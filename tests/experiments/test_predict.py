"""Classifying new pictures with saved runs, from the command line and in Python, without the training images."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import metarl
from metarl.experiments import images, omniglot, predict
from metarl.experiments.runner.training import main
from metarl.few_shot.images.pictures import PictureForm
from metarl.runs import RunError, load_checkpoint, save_checkpoint
from tests.experiments.runner.few_shot_runs import train_sine
from tests.experiments.runner.helpers import error_of, train
from tests.experiments.test_images import TINY, make_pictures

METHODS = {
    "prototypical": ["--iterations", "30"],
    "maml": ["--num-tasks", "2", "--inner-steps", "2", "--inner-step-size", "0.4", "--iterations", "20"],
    "classifier": ["--num-tasks", "2", "--evaluation-steps", "3"],
    "simple-shot": ["--batch-size", "4"],
    "mtl": ["--batch-size", "4", "--pretraining-iterations", "1", "--iterations", "2"],
    "relation": ["--batch-norm", "batch"],
    "meta-sgd": ["--num-tasks", "2"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each method, whose training images are gone."""
    folder = tmp_path_factory.mktemp("predict")
    make_pictures(folder / "data")
    for name, words in METHODS.items():
        places = ["--data", str(folder / "data"), "--cache", str(folder / "cache"), "--run-dir", str(folder / name)]
        every = ["--checkpoint-every", "99", "--method", name]
        main(images.EXPERIMENT, [*TINY, *every, *places, *words], evaluated=False)
    shutil.rmtree(folder / "data")
    shutil.rmtree(folder / "cache")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Dark and bright pictures of many kinds."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, level in (("dark", 20), ("bright", 230)):
        for index, kind in enumerate(("png", "jpg", "BMP", "tiff")):
            Image.new("RGB", (40 + index, 30), (level, level - index, level)).save(folder / f"{name}{index}.{kind}")
    return folder


def words_of(pictures):
    support = [f"{name}={pictures / f'{name}0.png'},{pictures / f'{name}1.jpg'}" for name in ("dark", "bright")]
    return ["--support", *support, "--query", str(pictures / "dark2.BMP"), str(pictures / "bright3.tiff")]


@pytest.mark.parametrize("method", METHODS)
def test_pictures_are_classified_from_the_command_line_as_in_python(method, runs, pictures, capsys):
    predict.main([str(runs / method), *words_of(pictures)])
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["picture", "class", "dark", "bright"]
    shown = np.array([[float(value) for value in line.split()[2:]] for line in lines])
    assert np.abs(shown.sum(axis=1) - 1).max() < 2e-4
    model = metarl.open_classifier(runs / method)
    names = ("dark0.png", "dark1.jpg", "bright0.png", "bright1.jpg", "dark2.BMP", "bright3.tiff")
    arrays = [np.asarray(Image.open(pictures / name)) for name in names]
    model.learn(arrays[:4], ["dark", "dark", "bright", "bright"])
    found = model.probabilities(arrays[4:])
    assert np.abs(found.numpy() - shown).max() < 1e-4
    assert [line.split()[1] for line in lines] == [model.classes[n] for n in found.argmax(dim=1).tolist()]
    if method in ("maml", "prototypical"):
        assert found.argmax(dim=1).tolist() == [0, 1]
    assert model.form == PictureForm(16, 16, 1)


def test_metric_methods_take_any_number_of_classes_and_networks_with_a_head_theirs(runs, pictures, capsys):
    three = [*words_of(pictures), "--support", *(f"{name}={pictures / 'dark0.png'}" for name in "abc")]
    predict.main([str(runs / "prototypical"), *three])
    assert capsys.readouterr().out.split()[2:5] == ["a", "b", "c"]
    line = error_of(capsys, predict.main, [str(runs / "maml"), *three])
    assert "--support: labels have 3 classes; allowed: at most 2" in line


def test_gradient_steps_change_what_is_learned(runs, pictures):
    arrays = [np.asarray(Image.open(path)) for path in sorted(pictures.glob("*[01].*"))]
    found = []
    for steps in (None, 0, 5):
        model = metarl.open_classifier(runs / "maml", inner_steps=steps)
        model.learn(arrays, ["bright", "bright", "dark", "dark"])
        found.append(model.probabilities(arrays))
    assert metarl.open_classifier(runs / "maml").inner_steps == 5  # of the evaluations
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    with pytest.raises(ValueError, match="inner_steps = -1"):
        metarl.open_classifier(runs / "maml", inner_steps=-1)


def test_opening_a_run_leaves_the_generator_and_needs_no_default(runs):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    try:
        torch.set_default_dtype(torch.float64)
        model = metarl.open_classifier(str(runs / "prototypical"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(3), expected)
    assert next(iter(model._theta.values())).dtype == torch.float32


def test_omniglot_sees_ink_as_white():
    assert omniglot.EXPERIMENT.form(omniglot.EXPERIMENT.configure()) == PictureForm(28, 28, 1, inverted=True)


@pytest.mark.parametrize(
    ("support", "line"),
    [
        (["cat"], "--support = cat; allowed: CLASS=FILE,FILE"),
        (["=a.png"], "--support = =a.png; allowed"),
        (["cat="], "--support = cat=; allowed"),
        (["cat=a.png,,b.png"], "allowed: CLASS=FILE,FILE"),
        (["cat=a.png", "cat=b.png"], "allowed: two classes or more"),
        (["cat=a.png", "dog=none.png"], "none.png cannot be read: No such file"),
    ],
)
def test_support_that_cannot_be_gets_one_line(runs, pictures, capsys, monkeypatch, support, line):
    monkeypatch.chdir(pictures)
    for name in ("a.png", "b.png"):
        shutil.copy("dark0.png", name)
    words = [str(runs / "prototypical"), "--support", *support, "--query", "dark0.png"]
    assert line in error_of(capsys, predict.main, words)


def test_queries_and_runs_that_cannot_be_get_one_line(runs, pictures, capsys, tmp_path):
    words = words_of(pictures)
    (tmp_path / "text.png").write_text("hello")
    line = error_of(capsys, predict.main, [str(runs / "maml"), *words[:4], str(tmp_path / "text.png")])
    assert "text.png is damaged or of another kind" in line
    assert "--steps = -1" in error_of(capsys, predict.main, [str(runs / "maml"), *words, "--steps", "-1"])
    line = error_of(capsys, predict.main, [str(runs / "prototypical"), *words, "--steps", "2"])
    assert "--steps = 2 of a method without gradient steps" in line
    assert "holds no run" in error_of(capsys, predict.main, [str(tmp_path), *words])
    assert "best.pt does not exist" in error_of(capsys, predict.main, [str(runs / "maml"), "--best", *words])


def test_runs_of_other_experiments_get_one_line(pictures, tmp_path, capsys):
    train("--run-dir", tmp_path / "navigation", "--iterations", "0")
    train_sine("--run-dir", tmp_path / "sine", "--iterations", "0", evaluated=False)
    for name in ("navigation", "sine"):
        line = error_of(capsys, predict.main, [str(tmp_path / name), *words_of(pictures)])
        assert "which classifies no images; allowed: a run of images, omniglot or mini_imagenet" in line


def test_a_checkpoint_of_another_network_is_refused(runs, tmp_path):
    shutil.copytree(runs / "prototypical", tmp_path / "changed")
    config = (tmp_path / "changed" / "config.json").read_text()
    (tmp_path / "changed" / "config.json").write_text(config.replace('"filters": 4', '"filters": 5'))
    with pytest.raises(RunError, match=r"checkpoint.pt does not fit the settings of the run"):
        metarl.open_classifier(tmp_path / "changed")


def test_a_run_of_one_s_own_script_is_opened_and_where_the_script_moved_it_is_named(runs, pictures, capsys, tmp_path):
    run, script = tmp_path / "run", tmp_path / "pets.py"
    shutil.copytree(runs / "prototypical", run)
    lines = "import dataclasses\nfrom metarl.experiments import images\n"
    script.write_text(lines + 'EXPERIMENT = dataclasses.replace(images.EXPERIMENT, name="pets")\n')
    config = json.loads((run / "config.json").read_text())
    entry = {"path": str(tmp_path / "gone.py"), "relative": "gone.py", "module": None}
    (run / "config.json").write_text(json.dumps({**config, "experiment": "pets", "script": entry}))
    state = load_checkpoint(run / "checkpoint.pt")
    state["config"]["experiment"] = "pets"
    save_checkpoint(run / "checkpoint.pt", state)
    assert "gone.py" in error_of(capsys, predict.main, [str(run), *words_of(pictures)])
    predict.main([str(run), *words_of(pictures), "--script", str(script)])
    shown = capsys.readouterr().out
    predict.main([str(runs / "prototypical"), *words_of(pictures)])
    assert capsys.readouterr().out == shown
