"""Evaluations of RL^2: returns by episode, means over trials, what they leave alone."""

import numpy as np
import pytest

from metarl.envs import BernoulliBandits
from metarl.rl.evaluation import held_out_tasks
from tests.builders import same
from tests.metarl.rl.rl2.builders import recurrent, trial_learner
from tests.probes import CorridorTasks


def test_returns_are_those_of_each_episode_and_means_over_trials():
    learner = trial_learner()
    tasks = held_out_tasks(learner, 4)
    evaluation = learner.evaluate(tasks, episodes=3, trials_per_task=5)
    played, _ = learner.play({"probabilities": np.repeat(tasks["probabilities"], 5, axis=0)}, 3)
    expected = played.returns.numpy().reshape(4, 5, 3).mean(axis=1).T
    np.testing.assert_allclose(evaluation.per_task, expected, rtol=1e-6)
    np.testing.assert_allclose(evaluation.others["trial"], expected.sum(axis=0), rtol=1e-6)
    assert set(evaluation.metrics) == {"return/step_0", "return/step_1", "return/step_2", "return/trial"}
    assert evaluation.to_json()["tasks"]["probabilities"] == tasks["probabilities"].tolist()
    assert evaluation.failures.shape == (3, 4)
    for e, step in enumerate(evaluation.path):
        assert step.episodes.valid.shape == (4, 4, 5)  # tasks, pulls, trials
        np.testing.assert_allclose(step.episodes.returns.mean(dim=1), expected[e], rtol=1e-6)


def test_a_number_of_tasks_means_held_out_ones_and_episodes_are_as_in_training_by_default():
    learner = trial_learner()
    evaluation = learner.evaluate(6)
    np.testing.assert_array_equal(evaluation.tasks["probabilities"], held_out_tasks(learner, 6)["probabilities"])
    assert evaluation.per_task.shape == (2, 6)


def test_an_evaluation_leaves_the_learner_as_it_is():
    learner, twin = trial_learner(), trial_learner()
    learner.evaluate(3)
    assert learner.env_steps == 0
    learner.step(), twin.step()
    assert same(learner.theta, twin.theta)


def test_success_is_told_where_the_environment_tells_it():
    distribution = CorridorTasks(broken="reports success")
    learner = trial_learner(distribution, policy=recurrent(distribution))
    evaluation = learner.evaluate({"length": np.array([2, 5])}, episodes=2)
    np.testing.assert_array_equal(evaluation.others["success"], [[0, 1], [0, 1]])
    assert {"success/step_0", "success/step_1"} <= learner.step().keys()
    assert "success" not in trial_learner().evaluate(2).others


@pytest.mark.parametrize("name", ["tasks", "episodes", "trials_per_task"])
def test_refusals_name_the_argument(name):
    arguments = {"tasks": 3, "episodes": 2, "trials_per_task": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} = 0"):
        trial_learner(BernoulliBandits(3, 4)).evaluate(**arguments)
