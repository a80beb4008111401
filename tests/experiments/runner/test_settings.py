"""Settings reach what they set."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import metarl
from metarl.experiments import navigation_2d, omniglot, sine
from metarl.experiments.navigation_2d import NavigationSettings
from metarl.experiments.runner.few_shot import build_rule as few_shot_rule
from metarl.few_shot.learner import MAMLGradient, ReptileGradient
from metarl.rl.estimators import dice, lvc, score, surrogate

SMALL = NavigationSettings(hidden_sizes=(4, 3), tasks=2, episodes=2, threads=1)


def build(**changes):
    return navigation_2d.build(replace(SMALL, **changes))


def test_the_defaults_are_the_papers():
    learner = build()
    assert learner.rule == metarl.GradientDescent(0.5, 1, True, later_factor=0.5)
    assert learner.estimator is score
    assert learner.outer == metarl.TRPO(0.01, 0.1)
    settings = (learner.discount, learner.gae_lambda, learner.bootstrap, learner.weighting, learner.budget)
    assert settings == (0.99, 1.0, False, "timestep", "episodes")
    assert learner.baseline == "linear"
    assert not learner.initial_sampling
    assert not learner.multi_step


def test_every_seed_has_its_own_policy():
    first, again, other = (build(seed=seed).theta["mean.0.weight"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()


def test_the_inner_loop_is_as_asked():
    wanted = metarl.GradientDescent(0.3, 2, False, later_factor=0.25)
    found = build(inner_step_size=0.3, inner_steps=2, order="first", later_factor=0.25, outer_step_size=0.7).rule
    assert found == wanted
    assert build(adaptation="meta-sgd").rule == metarl.MetaSGD(0.5)
    assert build(adaptation="layer-step-sizes").rule == metarl.LayerStepSizes(0.5)
    cavia = build(adaptation="cavia")
    assert (cavia.rule.adapted, cavia.rule.from_zero) == (("context",), True)
    anil = build(adaptation="anil")
    assert anil.rule.adapted_names(anil.theta) == ["log_std", "mean.4.weight", "mean.4.bias"]
    for name, estimator in {"score": score, "likelihood-ratio": surrogate, "lvc": lvc, "dice": dice}.items():
        assert build(estimator=name).estimator is estimator


def test_the_outer_optimiser_is_as_asked():
    assert build(max_kl=0.02, product_fraction=0.3).outer == metarl.TRPO(0.02, 0.3)
    ppo = build(outer="ppo", outer_step_size=0.01, epochs=3, clip=0.1, inner_kl=0.02).outer
    assert ppo == metarl.PPO(0.01, 3, 0.1, 0.02)
    assert build(outer="adam", outer_step_size=0.02).outer == metarl.Adam(0.02)
    assert build(outer="reptile", reptile_step_size=0.4).outer == metarl.Reptile(0.4)


def test_rollouts_and_advantages_are_as_asked():
    learner = build(
        discount=0.9, gae_lambda=0.8, bootstrap=True, weighting="episode", budget="steps", seed=7, task_chunk=1
    )
    found = (learner.discount, learner.gae_lambda, learner.bootstrap, learner.weighting, learner.budget)
    assert found == (0.9, 0.8, True, "episode", "steps")
    assert (learner.seed, learner.task_chunk, learner.tasks, learner.episodes) == (7, 1, 2, 2)
    assert build(baseline="quadratic").baseline == "quadratic"
    assert (learner.support_lambda, build(support_lambda=0.0).support_lambda) == (None, 0.0)
    assert (learner.survival_bonus, build(survival_bonus=2.0).survival_bonus) == (0.0, 2.0)
    assert (learner.bounds_penalty, build(bounds_penalty=0.1).bounds_penalty) == (0.0, 0.1)
    assert build(initial_sampling=True).initial_sampling
    assert build(multi_step=True, inner_steps=2).multi_step


@pytest.mark.parametrize(
    ("learner", "rule", "meta_gradient"),
    [
        ("maml", metarl.GradientDescent(0.01, 2, True, 1.0, ("*weight", "*bias")), MAMLGradient()),
        ("first-order", metarl.GradientDescent(0.01, 2, False, 1.0, ("*weight", "*bias")), MAMLGradient()),
        ("reptile", metarl.GradientDescent(0.01, 2, True, 1.0, ("*weight", "*bias")), ReptileGradient()),
        ("meta-sgd", metarl.MetaSGD(0.01, 2, True, 1.0, ("*weight", "*bias")), MAMLGradient()),
        ("anil", metarl.GradientDescent(0.01, 2, True, 1.0, ("head.*",)), MAMLGradient()),
        ("maml++", metarl.LayerStepSizes(0.01, 2, True, 1.0, ("*weight", "*bias")), MAMLGradient(1_500)),
    ],
)
def test_few_shot_learners_are_as_asked(learner, rule, meta_gradient):
    built = sine.build(sine.SineSettings(learner=learner, inner_steps=2, hidden_sizes=(3,), threads=1))
    assert (built.rule, built.meta_gradient) == (rule, meta_gradient)
    assert (built.clip, built.final_learning_rate) == (None, None)
    assert built.distribution == metarl.Sine(10, 10)


def test_the_shift_of_batch_norm_is_shared_by_all_tasks():
    settings = omniglot.OmniglotSettings()
    module = omniglot.network(settings, 5)
    adapted = few_shot_rule(settings, module).adapted_names(metarl.core.parameters.parameters_of(module))
    assert "blocks.0.convolution.weight" in adapted
    assert "head.bias" in adapted
    assert not [name for name in adapted if "shift" in name]


@pytest.mark.parametrize(("evaluated", "trained"), [("validation", {"train"}), ("test", {"train"})])
def test_training_sees_no_other_split_and_evaluations_their_own(evaluated, trained, monkeypatch):
    asked = []
    sample = metarl.Sine.sample
    monkeypatch.setattr(
        metarl.Sine, "sample", lambda self, tasks, split, rng: asked.append(split) or sample(self, tasks, split, rng)
    )
    settings = sine.SineSettings(hidden_sizes=(3,), evaluation_tasks=30, evaluation_steps=1, threads=1)
    learner = sine.build(settings)
    learner.step()
    assert set(asked) == trained
    asked.clear()
    evaluation = sine.EXPERIMENT.evaluate(settings, learner, evaluated)
    assert set(asked) == {evaluated}
    assert np.isfinite(evaluation.mean).all()
