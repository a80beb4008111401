"""Learners of RL^2 that its tests share, and policies whose outputs all differ."""

from typing import Any

import torch

from metarl.envs import BernoulliBandits
from metarl.rl.advantages import Advantages
from metarl.rl.rl2.learner import RL2Learner
from metarl.rl.rl2.policies import RecurrentPolicy
from metarl.rl.rl2.ppo import TrialPPO
from metarl.rl.sampler import Sampling
from metarl.rl.task_distribution import TaskDistribution

_PPO = TrialPPO(epochs=2, minibatches=2)


def scattered(policy: RecurrentPolicy, scale: float = 0.4) -> RecurrentPolicy:
    """A policy with noise on all its parameters, so that its outputs depend on all that it sees."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in policy.parameters():
            value.add_(scale * torch.randn(value.shape, generator=generator))
    return policy


def recurrent(distribution: TaskDistribution, memory_size: int = 6, **settings: Any) -> RecurrentPolicy:
    """A small policy for a task distribution; every call makes the same one."""
    torch.manual_seed(0)
    policy = RecurrentPolicy(distribution.observation_space, distribution.action_space, memory_size, **settings)
    return scattered(policy)


def trial_learner(
    distribution: TaskDistribution | None = None,
    num_tasks: int = 5,
    episodes: int = 2,
    ppo: TrialPPO = _PPO,
    **settings: Any,
) -> RL2Learner:
    """A small learner, by default of bandits with three arms and four pulls."""
    distribution = BernoulliBandits(3, 4) if distribution is None else distribution
    settings = {"policy": recurrent(distribution), "advantages": Advantages(gae_lambda=0.7), **settings}
    return RL2Learner(distribution, sampling=Sampling(num_tasks, episodes), ppo=ppo, **settings)
