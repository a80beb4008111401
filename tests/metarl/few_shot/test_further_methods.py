"""What holds for every method beyond gradient descent: all tasks at once, states, noise, learning, resuming."""

from dataclasses import replace

import pytest
import torch

from metarl.core.parameters import expand_over_tasks
from metarl.few_shot.evaluation import evaluate
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.noise import NoisyExamples
from metarl.few_shot.tasks import Sine
from tests.metarl.few_shot.further_methods import (
    MAKERS,
    OPTIMISERS,
    Quadratics,
    make,
    numbers,
    rows,
    tasks_for,
    without_noise,
)
from tests.metarl.few_shot.learners import Doubled, one_task

RECORDED = ("llama",)  # one of those that the learner records, as it takes seconds
every = pytest.mark.parametrize("name", MAKERS)


def total(gradients):
    """The gradient summed over tasks."""
    return {name: value.sum(dim=0) for name, value in gradients.items()}


@every
def test_all_tasks_at_once_equal_one_by_one(name):
    method, theta = make(name)
    drawn = tasks_for(name, method)
    last = len(method.states(expand_over_tasks(theta, 3), drawn.support, 2)) - 1
    whole, losses, metrics = method.gradient(rows(theta, 3), drawn, numbers(method))
    states = method.states(expand_over_tasks(theta, 3), drawn.support, 2)
    together = method.predict(expand_over_tasks(theta, 3), states[last], drawn.query.inputs)
    parts = []
    for task in range(3):
        one = one_task(drawn, task)
        parts.append(method.gradient(rows(theta, 1), one, numbers(method)))
        alone = method.states(expand_over_tasks(theta, 1), one.support, 2)[last]
        found = method.predict(expand_over_tasks(theta, 1), alone, one.query.inputs)
        torch.testing.assert_close(found, together[task : task + 1])
    torch.testing.assert_close(losses, torch.cat([loss for _, loss, _ in parts]))
    torch.testing.assert_close(metrics, torch.cat([metric for _, _, metric in parts]))
    for key, value in total(whole).items():
        torch.testing.assert_close(value, sum(total(gradient)[key] for gradient, _, _ in parts))
    assert not any(loss.requires_grad for _, loss, _ in parts)


@every
def test_the_state_of_a_task_does_not_change_with_the_tasks_beside_it(name):
    method, theta = make(name)
    drawn, others = tasks_for(name, method), tasks_for(name, method, seed=2)
    mixed = drawn.like([torch.cat([a[:1], b[1:]]) for a, b in zip(drawn.tensors, others.tensors, strict=True)])
    found, expected = (
        method.predict(own, method.states(own, of.support, 2)[-1], drawn.query.inputs)
        for own, of in ((expand_over_tasks(theta, 3), mixed), (expand_over_tasks(theta, 3), drawn))
    )
    torch.testing.assert_close(found[0], expected[0])
    assert not torch.allclose(found[1], expected[1])


@every
def test_states_end_where_adapt_does(name):
    method, theta = make(name)
    drawn = tasks_for(name, method)
    own = expand_over_tasks(theta, 3)
    states = method.states(own, drawn.support, method.inner_steps)
    assert len(states) == method.inner_steps + 1
    found, expected = (
        method.predict(own, state, drawn.query.inputs)
        for state in (states[-1], method.adapt(rows(theta, 3), drawn.support))
    )
    torch.testing.assert_close(found, expected.detach())
    first = method.predict(own, states[0], drawn.query.inputs)
    assert not torch.allclose(first, expected)


@every
def test_support_examples_of_the_callers_own_have_the_same_noise_for_every_task(name):
    method, theta = make(name)
    support, own = without_noise(tasks_for(name, method).support), expand_over_tasks(theta, 2)
    twice = type(support)(*(tensor[:1].expand(2, *tensor.shape[1:]) for tensor in support.tensors))
    found = method.predict(own, method.states(own, twice, 2)[-1], twice.inputs)
    torch.testing.assert_close(found[0], found[1])


def learner(name, **settings):
    method, _ = make(name)
    tasks = Quadratics(4) if name in OPTIMISERS else Sine(5, 4)
    return FewShotLearner(Doubled(tasks), method, **{"num_tasks": 4, **settings})


@every
def test_it_trains_in_chunks_as_a_whole_and_is_resumed(name):
    first, second = learner(name), learner(name, task_chunk=2)
    expected = [first.step() for _ in range(3)]
    for line, other in zip(expected, [second.step() for _ in range(2)], strict=False):
        assert line == pytest.approx(other)
    third = learner(name)
    third.load_state_dict(second.state_dict())
    assert third.step() == pytest.approx(expected[2])
    changed = [key for key, value in first.theta.items() if not torch.equal(value, learner(name).theta[key])]
    assert changed == list(first.theta)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_gradient_is_that_of_the_method(name):
    made = learner(name, num_tasks=2)
    for _ in range(12):  # longer than the learner waits before it records; a recording that differs is a warning
        found = made.meta_gradient(made.sample(2, "train"))
    expected, losses, _ = made.method.gradient(rows(made.theta, 2), made.sample(2, "train"), numbers(made.method))
    torch.testing.assert_close(found[1], losses)
    for key, value in total(expected).items():
        torch.testing.assert_close(found[0][key], value / 2)


@every
def test_evaluations_report_the_predictive_metrics_of_all_methods_alike(name):
    made = learner(name)
    evaluation = evaluate(made, 30, made.method.inner_steps)
    assert evaluation.per_task.shape == (made.method.inner_steps + 1, 30)
    own = {"moving_units"} if name == "mt-net" else set()
    assert set(evaluation.others) == (set() if name in OPTIMISERS else {"nll", "members", "best_member"} | own)
    again = evaluate(replace(made, task_chunk=7), 30, made.method.inner_steps)
    torch.testing.assert_close(torch.from_numpy(again.per_task), torch.from_numpy(evaluation.per_task))
    if evaluation.others:
        assert (evaluation.others["members"] >= evaluation.per_task[-1] - 1e-9).all()
        assert (evaluation.others["members"] >= evaluation.others["best_member"] - 1e-9).all()


@pytest.mark.parametrize("name", ["mt-net", "learned optimiser"])
def test_tasks_of_evaluations_have_noise_of_their_own(name):
    noise = [learner(name).sample(3, "test").support for _ in range(2)]
    assert isinstance(noise[0], NoisyExamples)
    assert torch.equal(noise[0].noise, noise[1].noise)
    assert not torch.equal(noise[0].noise[0], noise[0].noise[1])
