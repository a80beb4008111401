"""Evaluations on held-out tasks: streams of their own, and metrics against loops over episodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl import (
    keyed_generator,
)
from metarl.envs import Navigation2D
from metarl.rl.evaluation import evaluate, held_out_tasks
from metarl.rl.sampler import Sampler
from tests.builders import corridor_learner, navigation_learner, same
from tests.probes import CorridorTasks


def test_training_and_test_tasks_come_from_different_streams():
    learner = navigation_learner()
    test = held_out_tasks(learner, 40)["goal"]
    train = [Navigation2D().sample(20, keyed_generator(0, "train/tasks", i))["goal"] for i in range(20)]
    distances = np.abs(np.concatenate(train)[:, None] - test[None]).sum(axis=-1)
    assert distances.min() > 1e-6


def test_evaluation_adapts_without_changing_the_learner():
    learner = navigation_learner()
    before = learner.state_dict()
    evaluation = evaluate(learner, held_out_tasks(learner, 6), 2, 3)
    assert same(learner.theta, before["theta"])
    assert (learner.iteration, learner.env_steps) == (0, 0)
    np.testing.assert_allclose(evaluation.per_task[1], evaluation.path[1].episodes.returns.mean(dim=1))
    np.testing.assert_allclose(evaluation.standard_error, evaluation.per_task.std(axis=1, ddof=1) / 6**0.5)
    record = evaluation.to_json()
    assert record["return/step_2"]["mean"] == pytest.approx(np.mean(record["return/step_2"]["per_task"]))
    assert np.array(record["tasks"]["goal"]).shape == (6, 2)
    [alike, *_] = learner.adapt(held_out_tasks(learner, 6), 1, 3, purpose="train")
    assert not (alike.episodes.actions == evaluation.path[0].episodes.actions).any(), "noise of training"


def test_success_stands_beside_the_return():
    """A corridor's episode succeeds from its fourth step on."""
    learner = corridor_learner("reports success", num_tasks=5)
    metrics = learner.step()
    lengths = CorridorTasks().sample(5, keyed_generator(0, "train/tasks", 0))["length"]
    assert metrics["success/step_0"] == metrics["success/step_1"] == (lengths >= 4).mean()
    evaluation = evaluate(learner, {"length": np.array([2, 3, 4, 8])}, 1, 3)
    assert evaluation.others["success"].tolist() == [[0, 0, 1, 1]] * 2
    record = evaluation.to_json()["success/step_1"]
    assert (record["mean"], record["per_task"]) == (0.5, [0, 0, 1, 1])
    assert record["standard_error"] == pytest.approx(3**-0.5 / 2)  # standard deviation (1/3)^(1/2) of four tasks
    returns = dict(zip(("return/step_0", "return/step_1"), evaluation.mean, strict=True))
    assert evaluation.metrics == returns | {"success/step_0": 0.5, "success/step_1": 0.5}


def test_validation_tasks_are_apart_from_test_tasks_and_named_by_the_seed():
    learner = navigation_learner()
    validation, test = (held_out_tasks(learner, 40, split)["goal"] for split in ("validation", "test"))
    assert not np.isin(validation, test).any()
    assert np.array_equal(held_out_tasks(navigation_learner(), 40)["goal"], test)
    assert not np.isin(held_out_tasks(navigation_learner(seed=1), 40)["goal"], test).any()


def test_failures_are_shares_of_a_tasks_episodes(monkeypatch):
    learner, sample = navigation_learner(), Sampler.sample

    def failing(self, parameters, tasks, episodes_per_task, key):
        episodes = sample(self, parameters, tasks, episodes_per_task, key)
        return replace(episodes, failed=torch.tensor([[True, False, False, False], [False] * 4]))

    monkeypatch.setattr(Sampler, "sample", failing)
    evaluation = evaluate(learner, held_out_tasks(learner, 2), 1, 4)
    assert evaluation.failures.tolist() == [[0.25, 0]] * 2


def test_a_learner_evaluates_itself_on_tasks_or_on_a_number_of_held_out_ones():
    learner = navigation_learner()
    before = learner.state.theta
    expected = evaluate(learner, held_out_tasks(learner, 3), 2, 4)
    found = learner.evaluate(3, inner_steps=2, episodes_per_task=4)
    np.testing.assert_array_equal(found.per_task, expected.per_task)
    np.testing.assert_array_equal(found.tasks["goal"], held_out_tasks(learner, 3)["goal"])
    of_two = {name: values[:2] for name, values in found.tasks.items()}
    np.testing.assert_array_equal(learner.evaluate(of_two, 2, 4).per_task, expected.per_task[:, :2])
    assert learner.state.theta is before
    with pytest.raises(ValueError, match=r"^tasks = 0; allowed: a whole number"):
        learner.evaluate(0, 1)
