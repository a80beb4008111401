"""What a learner of RL^2 refuses, in one line that names it."""

import pytest
import torch
from torch import nn

from metarl.core.distributed import Processes
from metarl.envs import BernoulliBandits, Navigation2D
from metarl.rl.advantages import Advantages
from metarl.rl.outer import PPO
from metarl.rl.policies import CategoricalMLP
from metarl.rl.rl2.learner import RL2Learner
from metarl.rl.rl2.policies import RecurrentPolicy
from metarl.rl.sampler import Sampling
from tests.metarl.rl.rl2.builders import recurrent, trial_learner


class Bidirectional(RecurrentPolicy):
    """Sees the future."""

    def forward(self, inputs, memory=None):
        dist_params, values, memory = super().forward(inputs.flip(1), memory)
        return dist_params.flip(1), values.flip(1), memory


class Forgetful(RecurrentPolicy):
    """Loses its memory between calls."""

    def forward(self, inputs, memory=None):
        return super().forward(inputs, None)


class Random(RecurrentPolicy):
    """Draws anew in each call."""

    def forward(self, inputs, memory=None):
        dist_params, values, memory = super().forward(inputs, memory)
        return dist_params + torch.rand_like(dist_params), values, memory


class WithoutValues(RecurrentPolicy):
    """Has no critic."""

    def forward(self, inputs, memory=None):
        dist_params, _, memory = super().forward(inputs, memory)
        return dist_params, dist_params, memory


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Bidirectional, "other outputs in one pass than step by step"),
        (Forgetful, "other outputs in one pass than step by step"),
        (Random, "other outputs in one pass than step by step"),
        (WithoutValues, r"to \(2, 3, 3\), \(2, 3, 3\), \(2, 4\); allowed: three tensors: \(2, 3, 3\), logits of 3"),
    ],
)
def test_policies_that_have_no_memory_or_another_signature(kind, line):
    bandits = BernoulliBandits(3, 4)
    torch.manual_seed(0)
    policy = kind(bandits.observation_space, bandits.action_space, 4)
    nn.init.normal_(policy.action.weight)
    with pytest.raises(ValueError, match=f"the policy {kind.__name__} .*{line}"):
        trial_learner(bandits, policy=policy)


def test_policies_for_other_spaces_and_without_memory():
    with pytest.raises(ValueError, match="the policy RecurrentPolicy cannot go through inputs"):
        trial_learner(BernoulliBandits(4, 4), policy=recurrent(BernoulliBandits(3, 4)))
    with pytest.raises(ValueError, match=r"the policy RecurrentPolicy maps inputs .*logits of 3"):
        trial_learner(policy=recurrent(Navigation2D()))  # whose inputs have as many numbers
    bandits = BernoulliBandits(3, 4)
    with pytest.raises(ValueError, match="the policy CategoricalMLP cannot go through inputs"):
        trial_learner(policy=CategoricalMLP(bandits.observation_space, bandits.action_space))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sampling": 3}, "sampling"),
        ({"sampling": Sampling(budget="steps")}, "budget"),
        ({"sampling": Sampling(lanes=4)}, "lanes"),
        ({"ppo": PPO()}, "ppo"),
        ({"advantages": None}, "advantages"),
        ({"advantages": Advantages(bounds_penalty=0.5)}, "bounds_penalty"),  # of choices, which have no bounds
        ({"advantages": Advantages(support_lambda=0.8)}, "support_lambda"),
        ({"advantages": Advantages(bootstrap=True)}, "bootstrap"),
        ({"advantages": Advantages(baseline="quadratic")}, "baseline"),
        ({"advantages": Advantages(weighting="episode")}, "weighting"),
        ({"threads": 0}, "threads"),
        ({"task_chunk": 0}, "task_chunk"),
        ({"seed": -1}, "seed"),
        ({"processes": Processes(0, 2)}, "processes"),
    ],
)
def test_parts_that_cannot_be_used(changes, name):
    bandits = BernoulliBandits(3, 4)
    with pytest.raises(ValueError, match=f"{name} = .*; allowed: "):
        RL2Learner(bandits, recurrent(bandits), **changes)


def test_task_distributions_that_cannot_be_used():
    class Broken(BernoulliBandits):
        def sample(self, count, rng):
            return {"probabilities": super().sample(count, rng)["probabilities"][1:]}

    with pytest.raises(ValueError, match="sample"):
        trial_learner(Broken(3, 4))
