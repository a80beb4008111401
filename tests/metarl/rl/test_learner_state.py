"""A learner's state: saved, loaded and handed on, it continues bit for bit; another one is refused."""

from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorWrapper
from torch import nn

from metarl import (
    PPO,
    Adam,
    CategoricalMLP,
    GaussianMLP,
    GradientDescent,
    LayerStepSizes,
    Learner,
    MetaSGD,
    WithContext,
)
from metarl.core.parameters import parameters_of
from metarl.envs import Navigation2D
from metarl.rl.estimators import dice, surrogate
from metarl.rl.evaluation import held_out_tasks
from tests.builders import make_learner, navigation_learner, same, without_times
from tests.probes import CorridorTasks


def test_a_loaded_state_continues_bit_for_bit():
    unbroken = navigation_learner()
    unbroken.step()
    state = {**unbroken.state_dict(), "theta": {n: v.clone() for n, v in unbroken.theta.items()}}
    expected = [without_times(unbroken.step()) for _ in range(2)]
    resumed = navigation_learner()
    resumed.load_state_dict(state)
    assert [without_times(resumed.step()) for _ in range(2)] == expected
    assert same(resumed.theta, unbroken.theta)


class Features(nn.Module):
    """Fixed random features, in a buffer, and a scalar beside the weights that are learned."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.register_buffer("frequencies", torch.randn(2, 8))
        self.linear, self.gain = nn.Linear(8, 4), nn.Parameter(torch.tensor(0.5))

    def forward(self, observations):
        return self.gain * self.linear((observations @ self.frequencies).cos())


@pytest.mark.parametrize("rule", [GradientDescent(0.1), MetaSGD(0.1), LayerStepSizes(0.1)])
def test_a_state_holds_the_buffers_of_a_policy(rule):
    learners = [
        make_learner(Navigation2D(20), Features(seed), num_tasks=3, episodes_per_task=4, rule=rule) for seed in (0, 1)
    ]
    learners[0].step()
    learners[1].load_state_dict(learners[0].state_dict())
    assert torch.equal(learners[1].policy.frequencies, learners[0].policy.frequencies)
    metrics = [without_times(learner.step()) for learner in learners]
    assert metrics[0] == metrics[1]
    assert same(learners[0].theta, learners[1].theta)


@pytest.mark.parametrize(
    "rule",
    [
        MetaSGD(0.1, inner_steps=2),
        LayerStepSizes(0.1, inner_steps=2),
        GradientDescent(0.5, adapted=("mean.2.*", "log_std")),
        GradientDescent(0.5, inner_steps=2, second_order=False, adapted=("context",), from_zero=True),
    ],
    ids=["meta-sgd", "layer step sizes", "head", "context"],
)
def test_every_adaptation_rule_learns_what_it_should_and_continues_exactly(rule):
    def make():
        if not rule.from_zero:
            return navigation_learner(rule=rule)
        torch.manual_seed(0)
        policy = WithContext(GaussianMLP(Box(-1, 1, (4,)), Navigation2D().action_space, (16,), "tanh"), 2)
        return make_learner(Navigation2D(20), policy, num_tasks=4, episodes_per_task=5, rule=rule)

    learner = make()
    start = learner.theta
    learner.step()
    moved = {name for name in start if not torch.equal(start[name], learner.theta[name])}
    assert moved == set(start) - {"context"}
    assert set(learner.adapt(held_out_tasks(learner, 2), 1)[-1].parameters) == set(parameters_of(learner.policy))
    resumed = make()
    resumed.load_state_dict(learner.state_dict())
    assert without_times(resumed.step()) == without_times(learner.step())


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({"outer": PPO()}, {"outer": Adam()}),
        ({}, {"outer": PPO()}),
        ({"outer": PPO()}, {"outer": PPO(), "rule": GradientDescent(0.5, inner_steps=2)}),
    ],
)
def test_a_state_of_another_outer_optimiser_is_refused(then, now):
    learner = navigation_learner(**now)
    before = learner.state
    theta = {name: value + 1 for name, value in learner.theta.items()}
    state = {**navigation_learner(**then).state_dict(), "theta": theta, "iteration": 7}
    with pytest.raises(ValueError, match="outer optimiser"):
        learner.load_state_dict(state)
    assert learner.state is before
    assert learner.iteration == 0


def test_a_state_of_another_policy_is_refused():
    state = navigation_learner().state_dict()
    state["theta"] = {name: value[..., :1] for name, value in state["theta"].items()}
    with pytest.raises(ValueError, match="parameters"):
        navigation_learner().load_state_dict(state)


@pytest.mark.parametrize(("field", "value"), [("iteration", -1), ("iteration", 2.5), ("env_steps", -1)])
def test_counters_that_cannot_be_are_refused(field, value):
    learner = navigation_learner()
    with pytest.raises(ValueError, match=rf"^{field} = "):
        learner.load_state_dict({**learner.state_dict(), field: value})


def test_constants_of_another_policy_are_refused_and_nothing_changes():
    learner = make_learner(Navigation2D(20), Features(0), num_tasks=3, episodes_per_task=4)
    before, frequencies = learner.state, learner.policy.frequencies.clone()
    state = {**learner.state_dict(), "iteration": 7, "constants": {"frequencies": torch.zeros(3, 8)}}
    with pytest.raises(ValueError, match="frequencies"):
        learner.load_state_dict(state)
    assert learner.state is before
    assert torch.equal(learner.policy.frequencies, frequencies)


def test_a_state_that_is_refused_changes_no_constants_either():
    learner, other = (make_learner(Navigation2D(20), Features(s), num_tasks=3, episodes_per_task=4) for s in (0, 1))
    frequencies = learner.policy.frequencies.clone()
    with pytest.raises(ValueError, match="outer optimiser"):
        learner.load_state_dict({**other.state_dict(), "outer": {"adam": torch.zeros(1)}})
    assert torch.equal(learner.policy.frequencies, frequencies)


@pytest.mark.parametrize("name", ["theta", "outer", "iteration", "env_steps"])
def test_a_state_that_lacks_something_is_refused(name):
    learner = navigation_learner()
    state = learner.state_dict()
    del state[name]
    with pytest.raises(ValueError, match=name):
        learner.load_state_dict(state)


class Constant(nn.Module):
    """Reads its buffer as a number of Python, which a recording would keep."""

    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("scale", torch.tensor(scale))
        self.linear = nn.Linear(2, 4, bias=False)

    def forward(self, observations):
        return self.linear((observations * float(self.scale)).sin())


def test_recordings_of_the_constants_before_are_not_used_after_loading():
    learners = [make_learner(Navigation2D(60), Constant(s), num_tasks=2, episodes_per_task=3) for s in (1.0, 2.0)]
    for learner in learners:
        learner.step()
    learners[1].load_state_dict(learners[0].state_dict())
    assert without_times(learners[1].step()) == without_times(learners[0].step())


def test_a_learner_is_frozen():
    learner = navigation_learner()
    for name in (*(field.name for field in fields(Learner)), "iteration", "anything"):
        with pytest.raises(FrozenInstanceError):
            setattr(learner, name, 1)
        with pytest.raises(FrozenInstanceError):
            delattr(learner, name)


@pytest.mark.parametrize(
    "changes",
    [{"task_chunk": 2}, {"threads": 2}, {"estimator": surrogate}, {"rule": GradientDescent(0.5, second_order=False)}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_learner_with_other_settings_continues_from_the_same_state(changes):
    learner = navigation_learner()
    learner.step()
    other = replace(learner, **changes)
    assert same(other.theta, learner.theta)
    assert (other.iteration, other.env_steps) == (learner.iteration, learner.env_steps) == (1, learner.env_steps)
    expected, found = without_times(learner.step()), without_times(other.step())
    assert found["return/step_0"] == expected["return/step_0"]
    if not changes.keys() & {"estimator", "rule"}:
        assert found == expected
        assert same(other.theta, learner.theta)
    assert learner.iteration == other.iteration == 2


def test_another_estimator_is_that_of_the_inner_loss_too():
    """It was once left behind in what had been made of the first one."""
    learner = replace(navigation_learner(), estimator=dice)
    assert learner.objective(learner.adapt(held_out_tasks(learner, 2), 1)).model.estimator is dice
    fresh = navigation_learner(estimator=dice)
    assert without_times(learner.step()) == without_times(fresh.step())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"outer": PPO()}, "outer optimiser"),
        ({"outer": Adam()}, "outer optimiser"),
        ({"rule": MetaSGD(0.1)}, r"parameters.*step_size"),
        ({"policy": nn.Linear(2, 4)}, "parameters"),
    ],
    ids=["ppo", "adam", "rule", "policy"],
)
def test_settings_that_the_state_does_not_fit_are_refused(changes, named):
    learner = navigation_learner()
    learner.step()
    with pytest.raises(ValueError, match=named):
        replace(learner, **changes)
    assert replace(learner, **changes, state=None).iteration == 0  # to start anew must be said


class ClosingTasks(CorridorTasks):
    """Counts the environments that are open."""

    opened = closed = 0

    def make(self, num_envs, threads=1):
        self.opened += 1
        envs, owner = super().make(num_envs, threads), self

        class Closing(VectorWrapper):
            def close(self, **arguments):
                owner.closed += 1
                self.env.close(**arguments)

        return Closing(envs)


def test_a_learner_closes_the_environments_that_it_opened():
    distribution = ClosingTasks()
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (4,))
    with make_learner(distribution, policy, num_tasks=3, episodes_per_task=2) as learner:
        assert (distribution.opened, distribution.closed) == (1, 1)  # by the checks of a new learner
        for _ in range(2):
            learner.step()
        learner.adapt({"length": np.array([2, 3])}, 1)
        assert (distribution.opened, distribution.closed) == (3, 1)  # of 6 and of 4 lanes
    assert distribution.closed == 3
    learner.step()
    assert distribution.opened == 4  # it opens others when it needs them
    learner.close()
    assert distribution.closed == 4


def test_environments_are_closed_after_an_error_too():
    distribution = ClosingTasks()
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (4,))
    learner = make_learner(distribution, policy, num_tasks=3, episodes_per_task=2)
    learner.step()
    with pytest.raises(ZeroDivisionError), learner:
        _ = 1 / 0
    assert (distribution.opened, distribution.closed) == (2, 2)
