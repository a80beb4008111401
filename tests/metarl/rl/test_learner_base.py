"""What both learners of reinforcement learning do alike with tasks, states and environments."""

import numpy as np
import pytest
import torch

from tests.builders import navigation_learner
from tests.metarl.rl.rl2.builders import trial_learner

LEARNERS = {"maml": navigation_learner, "rl2": trial_learner}


@pytest.mark.parametrize("name", LEARNERS)
def test_another_number_of_tasks_than_asked_for_is_refused(name, monkeypatch):
    with LEARNERS[name]() as learner:
        sample, wanted = learner.task_distribution.sample, learner.sampling.num_tasks
        monkeypatch.setattr(learner.task_distribution, "sample", lambda count, rng: sample(count - 1, rng))
        with pytest.raises(ValueError, match=rf"sample\({wanted}\) returned {wanted - 1} tasks"):
            learner.step()
        assert (learner.iteration, learner.env_steps) == (0, 0)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_state_that_does_not_fit_changes_nothing(name):
    with LEARNERS[name]() as learner:
        learner.step()
        before = {key: value.clone() for key, value in learner.theta.items()}
        with pytest.raises(ValueError, match="iteration"):
            learner.load_state_dict({**learner.state_dict(), "iteration": -1})
        assert all(torch.equal(value, before[key]) for key, value in learner.theta.items())
        assert learner.iteration == 1


@pytest.mark.parametrize("name", LEARNERS)
def test_leaving_the_context_closes_the_environments_and_steps_open_others(name):
    closed = []
    with LEARNERS[name]() as learner:
        learner.step()
        envs = learner._lanes.of(learner.sampling.num_tasks)
        envs.close_extras = lambda **kwargs: closed.append(envs)
    assert closed == [envs]
    metrics = learner.step()
    assert np.isfinite(metrics["return/step_0"])
    learner.close()
