"""Evaluations: blocks of tasks, processes, statistics of batch norm, and outputs that are not finite."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl.core.distributed import Processes
from metarl.core.errors import NonFiniteError
from metarl.core.rules import GradientDescent
from metarl.few_shot.evaluation import evaluate, step_statistics
from metarl.few_shot.learner_checks import refuse_non_finite
from metarl.few_shot.networks import ConvNet
from metarl.few_shot.tasks import Examples, FewShotTasks, Sine
from tests.metarl.few_shot.learners import Doubled, image_learner, sine_learner


def test_as_many_tasks_are_evaluated_as_asked_for():
    learner = replace(sine_learner(), task_distribution=Doubled(Sine(5, 100)))
    evaluation = evaluate(learner, 30, 2)
    blocks = [learner.metric(learner.sample(size, "test", number), 2) for number, size in enumerate((25, 5))]
    np.testing.assert_array_equal(evaluation.per_task, torch.cat(blocks, dim=1))
    assert len(np.unique(evaluation.per_task[0])) == 30
    assert (evaluation.metric, evaluation.per_task.shape) == ("mse", (3, 30))
    assert len(evaluation.tasks) == 25


def test_processes_take_blocks_in_turn(monkeypatch):
    learner = sine_learner()
    whole = evaluate(learner, 60, 1).per_task
    said = []

    def gather(self, value):
        said.append(value)
        return said

    monkeypatch.setattr(Processes, "all_gather_objects", gather)
    other = replace(learner, processes=Processes(1, 2))
    with pytest.raises(KeyError):  # the block of the other rank has not been measured
        evaluate(other, 60, 1)
    first = evaluate(replace(learner, processes=Processes(0, 2)), 60, 1)
    assert [sorted(blocks) for blocks in said] == [[1], [0, 2]]
    np.testing.assert_array_equal(first.per_task, whole)


def broken(learner, value=float("nan")):
    """The learner with a value that is not finite in its last layer."""
    state = learner.state_dict()
    learner.load_state_dict({**state, "theta": {**state["theta"], "head.bias": state["theta"]["head.bias"] * value}})
    return learner


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("make", [image_learner, sine_learner])
def test_outputs_that_are_not_finite_are_refused(make, value):
    learner = broken(make(), value)
    with pytest.raises(NonFiniteError, match="outputs of test task 0 after inner step 0"):
        evaluate(learner, 30, 2)


def test_the_task_is_named_by_its_number_in_the_evaluation():
    class Spoilt:
        ways = 3

        def __init__(self, inner):
            self.inner = inner

        def sample(self, num_tasks, split, rng):
            tasks = self.inner.sample(num_tasks, split, rng)
            if num_tasks == 5:
                tasks.query.inputs[3, 1] = float("nan")
            return tasks

    learner = replace(image_learner(task_chunk=2), task_distribution=Spoilt(image_learner().task_distribution))
    with pytest.raises(NonFiniteError, match="task 28 after inner step 0"):
        evaluate(learner, 30, 1)


def test_a_task_that_diverges_after_more_steps_than_trained_shows_in_its_metric():
    learner = sine_learner(GradientDescent(1e6, extra_step_scale=1.0))
    evaluation = evaluate(learner, 3, 300)
    assert not np.isfinite(evaluation.per_task[-1]).all()
    record = evaluation.to_json()
    assert record["mse/step_300"]["mean"] is None
    assert record["mse/step_0"]["mean"] > 0


def test_a_task_that_diverges_within_the_trained_steps_is_refused():
    learners = [sine_learner(GradientDescent(1e300, steps, extra_step_scale=1.0)) for steps in (1, 2)]
    assert not np.isfinite(evaluate(learners[0], 3, 2).per_task[2]).any()
    with pytest.raises(NonFiniteError, match="after inner step 2"):
        evaluate(learners[1], 3, 2)


def test_what_a_metric_would_hide_is_refused_after_any_step():
    outputs, hidden = torch.zeros(3, 2, 5), torch.tensor([0.2, 0.2, 0.2])
    outputs[1, 0, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="task 11 after inner step 4"):
        refuse_non_finite(outputs, hidden, 4, first_task=10, diverges=True)
    shown = torch.tensor([0.2, float("nan"), 0.2])
    refuse_non_finite(outputs, shown, 4, first_task=10, diverges=True)
    with pytest.raises(NonFiniteError, match="task 11 after inner step 1"):
        refuse_non_finite(outputs, shown, 1, first_task=10, diverges=False)


def test_fixed_statistics_make_query_examples_independent():
    learner = image_learner(module=ConvNet((8, 8, 1), 3, filters=12))
    tasks = learner.sample(4, "test")
    statistics = step_statistics(learner, learner.sample(3, "train"), 2)
    assert len(statistics) == 3
    name = "blocks.1.norm.mean"
    assert not torch.allclose(statistics[0][name], statistics[2][name], atol=1e-3)
    whole = learner.metric(tasks, 2, statistics)
    single = []
    for index in range(6):
        query = Examples(tasks.query.inputs[:, index : index + 1], tasks.query.targets[:, index : index + 1])
        single.append(learner.metric(FewShotTasks(tasks.support, query), 2, statistics))
    torch.testing.assert_close(torch.stack(single).mean(dim=0), whole)


def test_fixed_statistics_are_those_of_training_tasks(monkeypatch):
    learner, drawn = image_learner(module=ConvNet((8, 8, 1), 3, filters=4)), []
    sample = type(learner.task_distribution).sample

    def noted(self, num_tasks, split, rng):
        drawn.append((num_tasks, split))
        return sample(self, num_tasks, split, rng)

    monkeypatch.setattr(type(learner.task_distribution), "sample", noted)
    fixed = evaluate(learner, 2, 1, fixed_statistics=True)
    assert drawn == [(100, "train"), (2, "test"), (2, "test")]
    assert fixed.per_task.shape == (2, 2)


def test_the_learner_is_left_as_it_was():
    learner = sine_learner()
    before = learner.state_dict()
    evaluate(learner, 3, 2)
    after = learner.state_dict()
    assert all(torch.equal(after["theta"][name], value) for name, value in before["theta"].items())
    with pytest.raises(ValueError, match="num_tasks"):
        evaluate(learner, 0, 1)
