"""The few-shot learner: one state that is copied, resumed and continued exactly; what it learns."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from metarl.core import recording
from metarl.core.errors import NonFiniteError
from metarl.core.randomness import keyed_generator
from metarl.core.rules import GradientDescent, MetaSGD
from metarl.few_shot.criteria import REGRESSION, Criterion, squared_error
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.networks import MLP
from metarl.few_shot.outer import OuterLoop
from metarl.few_shot.tasks import Sine
from tests.metarl.few_shot.learners import Doubled, image_learner, sine_learner


def same(first, second):
    return all(torch.equal(first[name], value) for name, value in second.items())


@pytest.mark.parametrize("rule", [GradientDescent(0.1, 2), MetaSGD(0.1, 1)])
def test_resumed_equals_never_stopped(rule):
    straight, first, second = (sine_learner(rule) for _ in range(3))
    unbroken = [straight.step() for _ in range(5)]
    lines = [first.step() for _ in range(2)]
    second.load_state_dict(first.state_dict())
    lines += [second.step() for _ in range(3)]
    assert lines == unbroken
    assert same(second.theta, straight.theta)


def test_a_state_is_a_copy_both_ways():
    one, other, apart = (sine_learner(GradientDescent(0.1)) for _ in range(3))
    for _ in range(2):
        one.step()
    state = one.state_dict()
    kept = copy.deepcopy(state)
    other.load_state_dict(state)
    apart.load_state_dict(copy.deepcopy(state))
    lines = [learner.step() for learner in (one, other, apart)]
    assert lines[0] == lines[1] == lines[2]
    assert same(other.theta, one.theta)
    assert same(state["theta"], kept["theta"])
    assert all(same(state["adam"][moment], kept["adam"][moment]) for moment in ("mean", "square"))


def test_replace_continues_from_a_copy_of_the_state():
    learner = sine_learner(GradientDescent(0.1))
    learner.step()
    faster = replace(learner, outer=OuterLoop(0.1))
    assert faster.iteration == 1
    faster.step()
    other = sine_learner(GradientDescent(0.1))
    other.step()
    assert same(learner.theta, other.theta)
    assert not same(faster.theta, learner.theta)
    with pytest.raises(ValueError, match="the state holds the parameters"):
        replace(learner, method=MAML(learner.method.module, REGRESSION, MetaSGD(0.1)))
    with pytest.raises(FrozenInstanceError):
        learner.num_tasks = 3


def test_a_foreign_state_is_refused_and_changes_nothing():
    learner, foreign = sine_learner(), image_learner()
    before = learner.state_dict()
    with pytest.raises(ValueError, match="the state holds the parameters"):
        learner.load_state_dict(foreign.state_dict())
    with pytest.raises(ValueError, match="the state holds the state of Adam"):
        learner.load_state_dict({**before, "adam": {"count": torch.zeros(())}})
    with pytest.raises(ValueError, match="iteration"):
        learner.load_state_dict({**before, "iteration": -1})
    assert same(learner.theta, before["theta"])


def test_parameters_alone_can_be_evaluated_but_not_trained_on():
    learner, other = sine_learner(), sine_learner()
    learner.step()
    state = {name: value for name, value in learner.state_dict().items() if name != "adam"}
    other.load_state_dict(state)
    tasks = learner.sample(3, "test")
    assert torch.equal(other.metric(tasks, 2), learner.metric(tasks, 2))
    with pytest.raises(ValueError, match="the state of Adam"):
        other.step()


def test_copies_and_pickles_go_on_alike():
    learner = sine_learner()
    learner.step()
    others = [copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))]
    expected = learner.step()
    for other in others:
        assert other.step() == expected


class Shifted(torch.nn.Module):
    """A module with a buffer and a plain attribute."""

    def __init__(self):
        super().__init__()
        self.linear, self.factor = torch.nn.Linear(1, 1), 1.0
        self.register_buffer("shift", torch.zeros(1))

    def forward(self, inputs):
        return self.factor * self.linear(inputs) + self.shift


def weighted(weight):
    return Criterion("weighted", lambda outputs, targets: weight * squared_error(outputs, targets), squared_error)


def test_what_the_caller_changes_later_has_no_effect(monkeypatch):
    monkeypatch.setattr(recording, "_PATIENCE", 2)
    module, weight = Shifted(), torch.ones(1)
    learner = FewShotLearner(Sine(shots=3), MAML(module, weighted(weight), GradientDescent(0.01)), num_tasks=4)
    expected = copy.deepcopy(learner)
    changes = (
        lambda: setattr(module, "factor", 3.0),
        lambda: module.shift.fill_(5),
        lambda: weight.fill_(7),
        lambda: module.linear.weight.data.fill_(2),
    )
    for change in changes:
        change()
        assert learner.step() == expected.step()
    assert same(learner.theta, expected.theta)


def test_buffers_of_the_module_are_part_of_the_state():
    first, second = (sine_learner(module=Shifted()) for _ in range(2))
    first.method.module.shift.fill_(3)
    second.load_state_dict(first.state_dict())
    tasks = first.sample(2, "test")
    assert torch.equal(second.metric(tasks, 1), first.metric(tasks, 1))


def test_ambient_modes_change_nothing():
    learner, other = sine_learner(), sine_learner()
    expected = learner.step()
    tasks = learner.sample(2, "test")
    with torch.no_grad(), torch.inference_mode():
        assert other.step() == expected
        assert torch.equal(other.metric(tasks, 2), learner.metric(tasks, 2))
        assert torch.equal(
            other.adapt(tasks.support, 1)[1]["head.bias"], learner.adapt(tasks.support, 1)[1]["head.bias"]
        )


def test_training_validation_and_test_tasks_come_from_different_streams():
    """Sine has no classes that could keep them apart."""
    learner = sine_learner()
    drawn = [learner.sample(4, split).query.targets for split in ("train", "validation", "test")]
    pairs = ((drawn[0], drawn[1]), (drawn[0], drawn[2]), (drawn[1], drawn[2]))
    assert not any(torch.isin(a, b).any() for a, b in pairs)


class Breaking:
    """Curves whose query targets are not finite in the third task, of training or of all splits."""

    def __init__(self, splits=("train",)):
        self.inner, self.splits, self.calls = Doubled(Sine(4, 3)), splits, 0

    def sample(self, num_tasks, split, rng):
        tasks = self.inner.sample(num_tasks, split, rng)
        if split in self.splits and num_tasks > 2:
            tasks.query.targets[2] = float("nan")
        return tasks


def test_a_broken_loss_says_which_task_and_changes_nothing():
    learner = replace(sine_learner(), task_distribution=Breaking())
    before = learner.state
    with pytest.raises(NonFiniteError, match="iteration 0: task 2"):
        learner.step()
    assert learner.state is before


def test_sine_is_learned():
    torch.manual_seed(0)
    method = MAML(MLP((1, 40, 40, 1)), REGRESSION, GradientDescent(0.01, extra_step_scale=1))
    learner = FewShotLearner(Sine(), method, outer=OuterLoop(0.005))
    tasks = Sine(5, 50).sample(100, "test", keyed_generator(0, "test"))
    before = learner.metric(tasks, 5).mean(dim=1)
    for _ in range(400):
        learner.step()
    after = learner.metric(tasks, 5).mean(dim=1)
    assert before[5] > 3
    assert after[5] < 2
    assert after[5] < after[1] < 0.6 * after[0]
