"""Settings reach what they set, and survive JSON."""

import json
from dataclasses import dataclass

import pytest
import torch

import metarl
from metarl.core.settings import SettingError, setting
from metarl.experiments import navigation_2d
from metarl.experiments.runner.config_file import VERSION, new_config, settings_of, to_json
from metarl.experiments.runner.flat_settings import flat_settings, from_flat, to_flat, updated
from metarl.experiments.runner.reinforcement import ANIL, CAVIA
from metarl.experiments.runner.settings import Settings, part, variants
from metarl.rl.estimators import dice, lvc, score, surrogate

NAVIGATION = navigation_2d.EXPERIMENT
SMALL = {"hidden_sizes": (4, 3), "num_tasks": 2, "episodes_per_task": 2, "threads": 1}


def build(**changes):
    return NAVIGATION.build(NAVIGATION.configure("paper", **{**SMALL, **changes}))


@dataclass(frozen=True)
class Round:
    radius: float = setting(1.0, "", more_than=0)
    colour: str = setting("red", "", choices=("red", "blue"))


@dataclass(frozen=True)
class Square:
    side: float = setting(2.0, "", more_than=0)
    colour: str = setting("blue", "", choices=("red", "blue"))


@dataclass(frozen=True)
class Drawing(Settings):
    shape: Round | Square = variants("shape", "", {"round": Round, "square": Square}, "drawing")


def flat_of(**changes):
    return updated(Drawing, to_flat(Drawing()), changes)


def test_a_variant_brings_its_own_settings_and_its_own_defaults():
    assert from_flat(Drawing, flat_of(shape="square")).shape == Square(2.0, "red")  # what both have stays as it was
    assert from_flat(Drawing, flat_of(shape="square", side=3.0)).shape == Square(3.0, "red")
    assert from_flat(Drawing, flat_of(radius=5.0, colour="blue")).shape == Round(5.0, "blue")
    assert "radius" not in flat_of(shape="square")


def test_changes_without_effect_are_refused_by_name():
    with pytest.raises(SettingError, match=r"--radius has no effect with --shape square; allowed with: round"):
        flat_of(shape="square", radius=1.0)
    with pytest.raises(SettingError, match="--side has no effect with --shape round"):
        flat_of(side=1.0)
    with pytest.raises(SettingError, match=r"--side = -1\.0"):
        flat_of(shape="square", side=-1.0)
    with pytest.raises(SettingError, match=r"unknown setting shap; the nearest is shape"):
        flat_of(shap="square")


def test_two_parts_cannot_share_a_name():
    @dataclass(frozen=True)
    class Twice(Drawing):
        other: Square = part(Square, "other")

    with pytest.raises(TypeError, match="colour"):
        flat_settings(Twice)


def test_the_defaults_are_the_papers():
    learner = build()
    assert learner.rule == metarl.GradientDescent(0.5, 1, True, extra_step_scale=0.5)
    assert learner.estimator is score
    assert learner.outer == metarl.TRPO(0.01, 0.1)
    assert learner.advantages == metarl.Advantages(discount=0.99, gae_lambda=1.0, baseline="linear")
    assert not learner.initial_sampling
    assert not learner.multi_step
    settings = NAVIGATION.configure("paper")
    assert settings.sampling == metarl.Sampling(20, 20, "episodes")
    assert (settings.environment.horizon, settings.run.iterations) == (100, 100)
    assert (settings.policy.hidden_sizes, settings.policy.activation) == ((100, 100), "relu")


def test_every_seed_has_its_own_policy():
    first, again, other = (build(seed=seed).theta["mean.0.weight"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()


def test_the_inner_loop_is_as_asked():
    changes = {"inner_step_size": 0.3, "inner_steps": 2, "second_order": False, "extra_step_scale": 0.25}
    assert build(**changes).rule == metarl.GradientDescent(0.3, 2, False, extra_step_scale=0.25)
    assert build(adaptation="meta-sgd").rule == metarl.MetaSGD(0.5)
    assert build(adaptation="layer-step-sizes").rule == metarl.LayerStepSizes(0.5)
    cavia = build(adaptation="cavia", context_size=3)
    assert cavia.rule == CAVIA(0.5, context_size=3)
    assert cavia.rule.adapted_names(cavia.rule.start(cavia.theta)) == ["context"]
    assert cavia.theta["context"].shape == (3,)
    anil = build(adaptation="anil")
    assert isinstance(anil.rule, ANIL)
    assert anil.rule.adapted_names(anil.theta) == ["log_std", "mean.4.weight", "mean.4.bias"]
    for name, estimator in {"score": score, "likelihood-ratio": surrogate, "lvc": lvc, "dice": dice}.items():
        assert build(estimator=name).estimator is estimator


def test_milestones_are_the_rules():
    rule = build(inner_step_size_milestones=(3, 5), milestone_step_sizes=(0.2, 0.1)).rule
    assert [rule.at(iteration).step_size for iteration in range(7)] == [0.5, 0.5, 0.5, 0.2, 0.2, 0.1, 0.1]


def test_the_outer_optimiser_is_as_asked():
    assert build(max_kl=0.02, hvp_sample_fraction=0.3).outer == metarl.TRPO(0.02, 0.3)
    ppo = build(outer="ppo", outer_step_size=0.01, epochs=3, clip=0.1, inner_kl=0.02, inner_kl_penalty=0.5).outer
    assert ppo == metarl.PPO(0.01, 3, 0.1, 0.02, 0.5)
    assert build(outer="adam", outer_step_size=0.02).outer == metarl.Adam(0.02)
    assert build(outer="reptile", reptile_step_size=0.4).outer == metarl.Reptile(0.4)


def test_sampling_and_advantages_are_as_asked():
    changes = {"discount": 0.9, "gae_lambda": 0.8, "support_lambda": 0.0, "survival_bonus": 2.0, "bounds_penalty": 0.1,
               "bootstrap": True, "baseline": "quadratic", "weighting": "episode"}  # fmt: skip
    learner = build(**changes, budget="steps", seed=7, task_chunk=1)
    assert learner.advantages == metarl.Advantages(**changes)
    assert learner.sampling == metarl.Sampling(2, 2, "steps")
    assert (learner.seed, learner.task_chunk, learner.threads) == (7, 1, 1)
    assert build().task_chunk is None
    assert build(initial_sampling=True).initial_sampling
    assert build(multi_step=True, inner_steps=2).multi_step
    assert build(observe_task=True).policy(torch.zeros(1, 4)).shape == (1, 4)


@pytest.mark.parametrize(
    "changes", [{}, {"hidden_sizes": (7, 8), "seed": 3, "support_lambda": 0.5}, {"outer": "ppo", "adaptation": "cavia"}]
)
def test_settings_survive_json(changes):
    settings = NAVIGATION.configure("paper", **changes)
    config = json.loads(json.dumps(new_config(NAVIGATION, "maml", settings)))
    assert (config["version"], config["experiment"], config["recipe"]) == (VERSION, "navigation_2d", "paper")
    assert settings_of(NAVIGATION, config) == settings


@pytest.mark.parametrize(
    ("part_", "change", "message"),
    [
        ("advantages", {"support_lambda": "none"}, "--support-lambda = 'none'"),
        ("advantages", {"support_lambda": [0.5]}, r"--support-lambda = \(0\.5,\)"),
        ("advantages", {"gae_lambda": None}, "--gae-lambda = None"),
        ("advantages", {"speed": 3}, r"unknown setting advantages\.speed"),
        ("sampling", {"num_tasks": -1}, "--num-tasks = -1"),
        ("sampling", {"num_tasks": True}, "--num-tasks = True"),
        ("policy", {"hidden_sizes": [3, 0.5]}, r"--hidden-sizes = \(3, 0\.5\)"),
        ("policy", {"hidden_sizes": 3}, "--hidden-sizes = 3"),
        ("outer", {"variant": "sgd"}, r"outer\.variant = 'sgd'; allowed: trpo"),
        ("outer", {"variant": ["trpo"]}, r"outer\.variant = \['trpo'\]"),
        ("outer", {"clip": 0.1}, r"unknown setting outer\.clip"),
    ],
)
def test_json_that_makes_no_sense_is_refused_by_name(part_, change, message):
    content = to_json(NAVIGATION.configure())
    content[part_] |= change
    with pytest.raises(SettingError, match=message):
        settings_of(NAVIGATION, {"version": VERSION, "experiment": "navigation_2d", "settings": content})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"version": VERSION, "settings": None}, "no settings"),
        ({"version": VERSION, "settings": {"speed": {}}}, "unknown part speed"),
        ({"version": VERSION, "settings": {"outer": 3}}, "outer"),
        ({"version": VERSION + 1, "settings": {}}, f"version = {VERSION + 1}"),
        ({"version": "two", "settings": {}}, "version = 'two'"),
    ],
)
def test_files_of_another_kind_are_refused_by_name(config, message):
    with pytest.raises(SettingError, match=message):
        settings_of(NAVIGATION, {"experiment": "navigation_2d", **config})
