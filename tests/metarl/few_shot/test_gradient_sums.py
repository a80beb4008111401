"""Recorded sums of gradients equal plain ones to the last bit; what is large or cannot be recorded is not."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch

from metarl.core import recording
from metarl.core.rules import GradientDescent
from metarl.few_shot.gradient_sums import GradientSums
from metarl.few_shot.methods.gradient import MAML, FewShotReptile
from tests.builders import needs_compiler
from tests.metarl.few_shot.learners import image_learner, sine_learner


@pytest.mark.parametrize(
    ("make", "kind", "more", "inner_steps"),
    [
        (image_learner, MAML, (), 1),
        (sine_learner, MAML, (), 2),
        (sine_learner, MAML, (3,), 2),
        (sine_learner, FewShotReptile, (), 2),
    ],
)
def test_recorded_equals_plain(make, kind, more, inner_steps, monkeypatch):
    plain = make(GradientDescent(0.1, inner_steps), kind=kind, more=more, task_chunk=2)
    recorded = copy.deepcopy(plain)
    expected = [plain.step() for _ in range(5)]
    monkeypatch.setattr(recording, "_PATIENCE", 2)
    assert [recorded.step() for _ in range(5)] == expected
    functions = [function for _, function in recorded._gradient_sums._recorded.values()]
    replays = [replay for function in functions for replay in function._recorded.values()]
    assert replays
    assert all(isinstance(replay, torch.fx.GraphModule) for replay in replays)


@needs_compiler
def test_compiled_equals_plain_within_rounding():
    plain = sine_learner(GradientDescent(0.1))
    compiled = replace(plain, compiled=True)
    for learner in (plain, compiled):
        for _ in range(3):
            learner.step()
    assert compiled._gradient_sums._recorded
    for name, value in plain.theta.items():
        torch.testing.assert_close(compiled.theta[name], value)


def test_what_cannot_be_recorded_says_so_once_and_learns_all_the_same(monkeypatch):
    monkeypatch.setattr(recording, "_PATIENCE", 1)
    monkeypatch.setattr(recording, "make_fx", lambda function: _refuse)
    learner, plain = sine_learner(), sine_learner()
    with pytest.warns(RuntimeWarning, match="cannot be recorded"):
        line = learner.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines = [line, learner.step()]
    monkeypatch.undo()
    assert lines == [plain.step() for _ in range(2)]


def _refuse(*tensors):
    raise RuntimeError("data-dependent")


def test_a_function_is_recorded_anew_for_another_method():
    learner = sine_learner()
    tasks, sums = learner.sample(3, "train"), GradientSums()
    method = learner.method
    first = sums.of(method, learner.theta, (1,), tasks)
    assert sums.of(method, learner.theta, (1,), tasks) is first
    assert sums.of(method.at(5), learner.theta, (1,), tasks) is first
    smaller = replace(method, rule=GradientDescent(0.01))
    assert sums.of(smaller, learner.theta, (1,), tasks) is not first
    assert copy.deepcopy(sums).of(smaller, learner.theta, (1,), tasks) is not first


def test_gradients_are_added_in_float64():
    learner = sine_learner()
    tasks = learner.sample(3, "train")
    weight = torch.tensor(1.0, dtype=torch.float64)
    total, losses, metrics = GradientSums().of(learner.method, learner.theta, (1,), tasks)(
        *learner.theta.values(), weight, *tasks.tensors
    )
    assert total.dtype == torch.float64
    assert losses.shape == metrics.shape == (3,)
    mean = torch.cat([value.reshape(-1) for value in learner.meta_gradient(tasks)[0].values()])
    torch.testing.assert_close(total / 3, mean)
