"""Methods on curves beyond gradient descent, from the command line."""

import json

import pytest

from metarl.core.settings import SettingError
from metarl.experiments import evaluate, open_run, sine
from metarl.experiments.runner.curve_methods import CURVE_METHODS
from metarl.experiments.runner.training import main
from metarl.few_shot.curves import Curves, FixedTasks
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.methods.laplace import Llama
from metarl.few_shot.methods.particles import BMAML, EMAML
from metarl.few_shot.methods.platipus import Platipus
from metarl.few_shot.methods.subspaces import MTNet, TransformedMLP
from metarl.few_shot.tasks import Sine
from tests.experiments.runner.few_shot_runs import small_settings, train_sine
from tests.experiments.runner.helpers import error_of

KINDS = {"t-net": MAML, "mt-net": MTNet, "emaml": EMAML, "bmaml": BMAML, "platipus": Platipus, "llama": Llama}
WORDS = {"emaml": ["--particles", "3"], "bmaml": ["--particles", "3"]}
WORDS |= {name: ["--predictive-samples", "4"] for name in ("platipus", "llama")}


@pytest.mark.parametrize("name", KINDS)
def test_every_method_trains_resumes_and_is_evaluated_with_its_pictures(name, tmp_path):
    directory = tmp_path / "run"
    words = ["--method", name, "--curves", "frequency", "--noise-std", "0.3", *WORDS.get(name, [])]
    train_sine(*words, "--iterations", "2", "--run-dir", directory, evaluated=False)
    main(sine.EXPERIMENT, ["--resume", str(directory), "--iterations", "4"])
    _, _, learner = open_run(directory)
    assert type(learner.method) is KINDS[name]
    assert learner.iteration == 4
    record = json.loads((directory / "evaluation.json").read_text())
    found = {key for key in record if key.startswith("mse/")}
    expected = {"mse/step_0", "mse/step_1", "mse/step_2", "mse/nll", "mse/members", "mse/best_member"}
    assert found == expected | ({"mse/moving_units"} if name == "mt-net" else set())
    assert all(len(record[key]["per_task"]) == 30 for key in found)
    assert record["mse/members"]["mean"] >= record["mse/step_1"]["mean"] - 1e-6
    assert (directory / "curves.png").exists()
    assert (directory / "masks.png").exists() == (name == "mt-net")
    if name == "llama":  # its posterior takes other numbers of support points
        evaluate.main([str(directory), "--shots", "3", "--steps", "1", "--output", str(tmp_path / "more")])
        assert json.loads((tmp_path / "more" / "evaluation.json").read_text())["shots"] == 3


def test_all_methods_are_tried():
    assert list(CURVE_METHODS) == list(KINDS)


def test_maml_has_the_same_metrics_where_the_noise_is_said_and_none_where_it_is_not():
    names = {}
    for noise in (None, 0.3):
        settings = small_settings(noise_std=noise)
        evaluation = sine.EXPERIMENT.evaluate(settings, sine.EXPERIMENT.build(settings), "test")
        names[noise] = set(evaluation.others)
    assert names == {None: set(), 0.3: {"nll", "members", "best_member"}}


def test_settings_reach_the_methods():
    def method(**changes):
        return sine.EXPERIMENT.build(small_settings(**changes)).method

    assert isinstance(method(method="t-net").module, TransformedMLP)
    assert method(method="mt-net").rule.adapted == ("*weight", "*bias")
    assert len(method(method="emaml", particles=4).members) == 4
    bayesian = method(method="bmaml", particles=2, leader_steps=3, inner_step_size=0.02)
    assert (bayesian.leader_steps, bayesian.rule.step_size) == (3, 0.02)
    platipus = method(method="platipus", predictive_samples=6, kl_weight=0.2, initial_weight_std=0.1)
    assert (platipus.samples, platipus.kl_weight, platipus.initial_std) == (6, 0.2, 0.1)
    llama = method(method="llama", noise_std=0.2, determinant_weight=0.5)
    assert (llama.determinant_weight, llama.criterion.noise_std) == (0.5, 0.2)


def test_members_start_differently_and_the_first_as_maml_does():
    first, second = sine.EXPERIMENT.build(small_settings(method="emaml", particles=2)).theta["head.weight"]
    assert not first.equal(second)
    assert first.equal(sine.EXPERIMENT.build(small_settings()).theta["head.weight"])


def test_curves_are_those_that_settings_name():
    assert isinstance(sine.EXPERIMENT.build(small_settings()).task_distribution, Sine)
    fixed = sine.EXPERIMENT.build(small_settings(curves="wide", training_curves=7)).task_distribution
    assert isinstance(fixed, FixedTasks)
    assert (fixed.count, fixed.task_distribution.frequency) == (7, (0.5, 2.0))
    judged = sine.EXPERIMENT.evaluation_tasks(small_settings(curves="half"), None)
    assert isinstance(judged, Curves)
    assert (judged.queries, judged.support_x, judged.x) == (100, (-5.0, 0.0), (-5.0, 5.0))


def test_recipes_compare_each_method_with_maml_on_the_same_curves():
    settings = {name: sine.EXPERIMENT.configure(name) for name in sine.RECIPES}
    assert settings["mt-net, frequencies"].curves == settings["maml, frequencies"].curves
    assert sine.RECIPES["t-net, frequencies"].published == (0.83,)
    assert settings["bmaml, 100 curves"].curves.training_curves == 100
    assert settings["platipus, sines and lines"].method.inner_steps == 5
    assert settings["llama, half the range"].curves.noise_std == 0.3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--method", "llama"], "--noise-std = None; allowed with --method llama"),
        (["--method", "oracle", "--curves", "wide", "--evaluation-steps", "0"], "--curves = wide"),
        (["--curves", "cosine"], "curves = 'cosine'"),
        (["--method", "mt-net", "--particles", "3"], "--particles has no effect with --method mt-net"),
        (["--noise-std", "0"], "noise-std = 0.0; allowed: more than 0"),
        (["--method", "platypus"], "the nearest is platipus"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(words, line, capsys):
    assert line in error_of(capsys, main, sine.EXPERIMENT, words)


def test_an_odd_number_of_samples_is_refused():
    with pytest.raises(SettingError, match="samples"):
        sine.EXPERIMENT.build(small_settings(method="llama", noise_std=0.3, predictive_samples=3))
