"""The learner's meta-iterations: what they change, count and report, and what ends a run."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl import (
    TRPO,
    Adam,
    GradientDescent,
    keyed_generator,
)
from metarl.core.errors import NonFiniteError
from metarl.envs import Navigation2D
from metarl.rl.estimators import score
from metarl.rl.evaluation import evaluate, held_out_tasks
from metarl.rl.objective import MetaObjective
from tests.builders import corridor_learner, navigation_learner, same, without_times
from tests.probes import CorridorTasks


def test_an_iteration_moves_the_parameters_within_the_bound():
    learner = navigation_learner()
    before = learner.theta
    metrics = learner.step()
    assert metrics["accepted"] == 1
    assert 0 < metrics["kl"] <= 0.01
    assert metrics["loss_after"] < metrics["loss_before"]
    assert metrics["loss_before"] == pytest.approx(0, abs=1e-5)  # standardised advantages, ratios of one
    assert not same(before, learner.theta)
    assert (learner.iteration, metrics["iteration"]) == (1, 1)
    assert metrics["adaptation_gain"] == pytest.approx(metrics["return/step_1"] - metrics["return/step_0"])


def test_a_rejected_step_changes_nothing_and_is_logged(monkeypatch):
    learner = navigation_learner()
    before = learner.theta
    huge = torch.tensor(1e9)
    monkeypatch.setattr(MetaObjective, "evaluate", lambda self, vector: (huge, huge))
    metrics = learner.step()
    assert metrics["accepted"] == 0
    assert metrics["line_search_steps"] == 15
    assert same(before, learner.theta)


def test_environment_steps_count_valid_steps_only():
    learner = corridor_learner()
    path = learner.adapt({"length": np.array([2, 4, 8])}, inner_steps=1, episodes_per_task=2)
    assert [at.episodes.env_steps for at in path] == [2 * (2 + 4 + 6)] * 2
    learner.step()
    drawn = CorridorTasks().sample(3, keyed_generator(0, "train/tasks", 0))["length"]
    assert learner.env_steps == 2 * 2 * np.minimum(drawn, 6).sum()


def test_first_order_and_second_order_learn_differently():
    second = navigation_learner()
    first = navigation_learner(rule=replace(second.rule, second_order=False))
    metrics = [learner.step() for learner in (first, second)]
    assert metrics[0]["return/step_1"] == metrics[1]["return/step_1"]
    assert metrics[0]["meta_gradient_norm"] != pytest.approx(metrics[1]["meta_gradient_norm"], rel=1e-2)


def test_every_iteration_has_new_tasks(monkeypatch):
    learner, seen = navigation_learner(), []
    sample = learner.task_distribution.sample
    monkeypatch.setattr(Navigation2D, "sample", lambda self, count, rng: seen.append(sample(count, rng)) or seen[-1])
    learner.step()
    learner.step()
    assert not np.isin(seen[0]["goal"], seen[1]["goal"]).any()


def test_every_iteration_takes_its_share_of_other_samples_for_its_products(monkeypatch):
    learner, drawn = navigation_learner(outer=TRPO(hvp_sample_fraction=0.3)), []
    products = MetaObjective.kl_products

    def noted(self, vector, fraction, rng):
        drawn.append((fraction, copy.deepcopy(rng).random()))
        return products(self, vector, fraction, rng)

    monkeypatch.setattr(MetaObjective, "kl_products", noted)
    for _ in range(3):
        learner.step()
    assert len(set(drawn)) == 3
    assert {fraction for fraction, _ in drawn} == {0.3}


def test_meta_parameters_that_are_not_finite_are_not_taken():
    learner = navigation_learner(outer=Adam(1e300))
    before = learner.theta
    with pytest.raises(NonFiniteError, match="meta-parameters after iteration 1"):
        learner.step()
    assert same(before, learner.theta)
    assert learner.iteration == 0


def test_parameters_that_are_not_finite_name_step_and_task():
    learner = navigation_learner(rule=GradientDescent(1e300))
    with pytest.raises(NonFiniteError, match="parameters of task 0 after inner step 1"):
        evaluate(learner, held_out_tasks(learner, 2), 2, 3)


def test_an_estimator_gives_a_number_for_each_task():
    """A scalar would make the inner steps as many times too small as there are tasks."""
    learner = navigation_learner(estimator=lambda *of: score(*of).mean())
    with pytest.raises(ValueError, match=r"estimator gives \(\) for"):
        learner.step()


def test_metrics_have_a_name_for_every_phase_and_number():
    metrics = navigation_learner(rule=GradientDescent(0.1, inner_steps=2)).step()
    assert {name for name in metrics if name.startswith("seconds/")} == {
        "seconds/rollout",
        "seconds/adapt",
        "seconds/update",
    }
    assert {f"return/step_{step}" for step in range(3)} <= set(metrics)
    assert "return/step_3" not in metrics
    assert all(np.isfinite(value) for value in metrics.values())


def test_the_step_size_changes_at_the_iteration_of_its_milestone():
    """The rule with one milestone is that of before up to iteration 3, and another one from there on."""
    scheduled = GradientDescent(0.5, milestones=(3,), milestone_step_sizes=(0.05,))
    learner, plain = navigation_learner(rule=scheduled), navigation_learner(rule=GradientDescent(0.5))
    for _ in range(3):
        assert without_times(learner.step()) == without_times(plain.step())
    later = navigation_learner(rule=GradientDescent(0.05), state=plain.state)
    assert learner.iteration == 3
    assert without_times(learner.step()) == without_times(later.step())


def test_adapting_uses_the_step_size_of_the_learners_iteration():
    scheduled = GradientDescent(0.5, milestones=(3,), milestone_step_sizes=(0.05,))
    learner = navigation_learner(rule=scheduled)
    for iteration, size in ((2, 0.5), (3, 0.05)):
        at = replace(learner, state=replace(learner.state, iteration=iteration))
        before, after = at.adapt(held_out_tasks(learner, 4), 1)
        moved = [(after.parameters[n] - before.parameters[n]).flatten(1).square().sum(dim=1) for n in learner.theta]
        torch.testing.assert_close(sum(moved).sqrt(), size * after.gradient_norm, rtol=1e-3, atol=0)
