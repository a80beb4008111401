"""What a learner refuses when it is made, in one line with the name of what is wrong."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import nn

from metarl import (
    TRPO,
    Advantages,
    GaussianMLP,
    GradientDescent,
    LayerStepSizes,
    Learner,
    MetaSGD,
    Reptile,
)
from metarl.core.distributed import Processes
from metarl.envs import AntVelocity, Navigation2D
from metarl.rl.estimators import dice, lvc, surrogate
from metarl.rl.learner_checks import check_bounds_penalty
from tests.builders import make_learner, navigation_learner


def test_a_quadratic_baseline_of_many_numbers_is_refused():
    ants = AntVelocity("paper")
    policy = GaussianMLP(ants.observation_space, ants.action_space, (4,))
    with pytest.raises(ValueError, match=r"^baseline = 'quadratic'.*125 numbers"):
        make_learner(ants, policy, baseline="quadratic")


def test_a_quadratic_baseline_of_few_samples_is_refused():
    with pytest.raises(ValueError, match=r"^baseline = 'quadratic'.*15 samples"):
        navigation_learner(baseline="quadratic", horizon=3)


@pytest.mark.parametrize(
    ("low", "high", "refused"), [(-1.0, 1.0, False), (-np.inf, 1.0, False), (-np.inf, np.inf, True)]
)
def test_a_penalty_beyond_bounds_that_actions_do_not_have_is_refused(low, high, refused):
    space = Box(low, high, (2,))
    with pytest.raises(ValueError, match=r"^bounds_penalty = 0.5 .*; allowed: 0") if refused else nullcontext():
        check_bounds_penalty(Advantages(bounds_penalty=0.5), space)
    check_bounds_penalty(Advantages(), space)


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", -1), ("seed", 2**64), ("seed", 0.5), ("threads", 0), ("task_chunk", -1), ("multi_step", 1)],
)
def test_settings_out_of_bounds_name_their_field(field, value):
    with pytest.raises(ValueError, match=rf"^{field} = "):
        navigation_learner(**{field: value})


class Lacking:
    horizon = 3


def test_a_task_distribution_that_lacks_something_is_refused():
    with pytest.raises(ValueError, match="task distribution Lacking has no sample, make"):
        Learner(Lacking(), nn.Linear(2, 4))


def test_more_processes_than_tasks_are_refused():
    with pytest.raises(ValueError, match=r"^num_tasks = 4 on 5 processes"):
        navigation_learner(processes=Processes(0, 5))


def test_a_policy_whose_output_does_not_fit_is_refused():
    distribution = Navigation2D(10)
    for policy, found in ((nn.Linear(2, 3), r"shape \(2, 3\)"), (Pair(), "tuple")):
        with pytest.raises(ValueError, match=rf"^the policy maps .* to {found}.*\(2, 4\)"):
            make_learner(distribution, policy)


class Pair(nn.Module):
    """Returns the mean and the log standard deviation one by one."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, observations):
        return self.linear(observations), self.linear(observations)


@pytest.mark.parametrize(
    "policy",
    [
        nn.Sequential(nn.Linear(2, 4), nn.Dropout()),
        nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)),
        nn.GRU(2, 4),
        nn.Linear(2, 4).double(),
        nn.Linear(3, 4),
    ],
)
def test_a_policy_that_cannot_run_for_a_batch_of_tasks_is_refused(policy):
    kind = type(policy).__name__
    with pytest.raises(ValueError, match=rf"^the policy {kind} cannot map observations \(2, 2\)"):
        make_learner(Navigation2D(10), policy)


class Counting(nn.Module):
    """Gives other outputs in every call."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(2, 4), 0

    def forward(self, observations):
        self.calls += 1
        return self.calls * self.linear(observations)


class Keeping(nn.Module):
    """Goes on from a tensor of the call before."""

    def __init__(self):
        super().__init__()
        self.linear, self.before = nn.Linear(2, 4), None

    def forward(self, observations):
        output = self.linear(observations)
        output = output if self.before is None else output + self.before
        self.before = output
        return output


class OnceOnly(torch.autograd.Function):
    """A square whose derivative has none."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class NoCurvature(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 4)

    def forward(self, observations):
        return OnceOnly.apply(self.linear(observations))


@pytest.mark.parametrize("kind", [Counting, Keeping, NoCurvature])
def test_a_policy_with_state_or_without_second_derivative_is_refused(kind):
    with pytest.raises(ValueError, match=f"^the policy {kind.__name__} "):
        make_learner(Navigation2D(10), kind())


def test_a_policy_that_cannot_be_copied_is_refused():
    policy = nn.Linear(2, 4)
    policy.cached = policy(torch.ones(2))  # part of a graph
    with pytest.raises(ValueError, match=r"^Linear cannot be copied"):
        make_learner(Navigation2D(10), policy)


def test_a_policy_without_anything_to_learn_is_refused():
    with pytest.raises(ValueError, match=r"^Linear has no parameter that requires a gradient"):
        make_learner(Navigation2D(10), nn.Linear(2, 4).requires_grad_(False))


TWO = GradientDescent(0.1, inner_steps=2)
NONE = GradientDescent(0.1, inner_steps=0)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"estimator": "lvc"}, "estimator = 'lvc'"),
        ({"rule": 0.1}, "rule = 0.1"),
        ({"outer": TRPO}, "outer = <class"),
        ({"initial_sampling": True, "outer": Reptile()}, "initial_sampling = True"),
        ({"initial_sampling": True, "rule": NONE}, "initial_sampling = True"),
        ({"initial_sampling": True, "weighting": "episode"}, "initial_sampling = True.*weighting"),
        ({"initial_sampling": True, "estimator": lvc}, "initial_sampling = True.*lvc"),
        ({"initial_sampling": True, "estimator": surrogate}, "initial_sampling = True.*surrogate"),
        ({"initial_sampling": True, "estimator": dice}, "initial_sampling = True.*dice"),
        ({"multi_step": True}, "multi_step = True"),
        ({"multi_step": True, "rule": TWO, "outer": Reptile()}, "multi_step = True"),
        ({"multi_step": True, "rule": TWO, "initial_sampling": True}, "multi_step = True.*initial_sampling"),
        ({"outer": Reptile(), "rule": MetaSGD(0.1)}, r"outer = Reptile.*step_size\.log_std"),
        ({"outer": Reptile(), "rule": NONE}, "outer = Reptile"),
        ({"outer": Reptile(), "rule": GradientDescent(adapted=("log_std",))}, r"outer = Reptile.*mean\.0\.bias"),
        ({"rule": LayerStepSizes(0.1, inner_steps=0)}, r"inner_steps = 0.*step_size\.log_std"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes, field):
    with pytest.raises(ValueError, match=f"^{field}") as caught:
        navigation_learner(**changes)
    assert len(str(caught.value).splitlines()) == 1
