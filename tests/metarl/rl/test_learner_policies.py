"""Modules of one's own as policies."""

import torch
from torch import nn

from metarl import TRPO, GradientDescent
from metarl.envs import Navigation2D
from tests.builders import make_learner, navigation_learner, same, without_times


def test_frozen_parameters_stay_as_they_are():
    policy = navigation_learner().policy
    policy.mean[0].requires_grad_(False)
    before = policy.mean[0].weight.clone()
    learner = make_learner(Navigation2D(20), policy, num_tasks=4, episodes_per_task=5, rule=GradientDescent(0.5))
    assert learner.step()["accepted"] == 1
    assert set(learner.theta) == {"mean.2.weight", "mean.2.bias", "log_std"}
    assert torch.equal(learner.policy.mean[0].weight, before)


def test_any_module_serves_as_a_policy():
    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(0.1 * torch.randn(2, 4))

        def forward(self, observations):
            return observations.tanh() @ self.weight

    distribution = Navigation2D(10)
    learner = make_learner(
        distribution, Bilinear(), num_tasks=3, episodes_per_task=4, outer=TRPO(hvp_sample_fraction=1.0)
    )
    assert learner.step()["kl"] > 0


class Noisy(nn.Module):
    """Has a constant that others may change from outside."""

    def __init__(self):
        super().__init__()
        self.linear, self.factors = nn.Linear(2, 4), [1.0]

    def forward(self, observations):
        return self.factors[0] * self.linear(observations)


def test_what_the_caller_does_to_the_policy_later_has_no_effect():
    policies = [Noisy() for _ in range(2)]
    policies[1].load_state_dict(policies[0].state_dict())
    learner, untouched = (
        make_learner(Navigation2D(10), policy, num_tasks=3, episodes_per_task=4) for policy in policies
    )
    assert learner.policy is not policies[0]
    policies[0].factors[0] = 100.0
    with torch.no_grad():
        policies[0].linear.weight.zero_()
    assert without_times(learner.step()) == without_times(untouched.step())


def test_the_learner_does_nothing_to_the_callers_policy():
    policy = Noisy()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    make_learner(Navigation2D(10), policy, num_tasks=3, episodes_per_task=4).step()
    assert same(policy.state_dict(), before)
    assert all(parameter.grad is None for parameter in policy.parameters())


class Attentive(nn.Module):
    """Softmax attention over the two numbers of an observation, from operations with second derivatives."""

    def __init__(self):
        super().__init__()
        self.keys, self.out = nn.Linear(1, 4), nn.Linear(4, 4)

    def forward(self, observations):
        keys = self.keys(observations.unsqueeze(-1))
        shares = (keys @ keys.mT).softmax(dim=-1)
        return self.out((shares @ keys).mean(dim=-2))


def test_attention_written_out_is_a_policy():
    learner = make_learner(Navigation2D(10), Attentive(), num_tasks=3, episodes_per_task=4)
    before = learner.theta
    assert learner.step()["accepted"] == 1
    assert not same(before, learner.theta)
