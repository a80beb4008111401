"""Learners and rollouts that tests share: settings of `Sampling` and `Advantages` may be given flat."""

import shutil
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from metarl import Advantages, CategoricalMLP, GaussianMLP, GradientDescent, Learner, Sampling
from metarl.core.parameters import Parameters, parameters_of
from metarl.core.randomness import RolloutKey
from metarl.envs import Navigation2D
from metarl.rl.action_distributions import action_distribution_for
from metarl.rl.advantages import fit_values, standardised_advantages
from metarl.rl.episodes import Episodes
from metarl.rl.rollout import Rollout
from metarl.rl.task_distribution import TaskDistribution, Tasks
from tests.probes import CorridorTasks

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="a compiled recording needs a C++ compiler"
)

_GROUPS = {"sampling": Sampling, "advantages": Advantages}


def estimate_advantages(
    episodes: Episodes,
    discount: float = 0.99,
    gae_lambda: float = 1.0,
    bootstrap: bool = False,
    baseline: str = "linear",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the advantages of episodes, the explained variance, and what the advantages were divided by."""
    values = fit_values(episodes, discount, bootstrap, baseline)
    advantages, std = standardised_advantages(episodes, values, discount, gae_lambda)
    return advantages, values.explained_variance, std


def make_learner(task_distribution: TaskDistribution, policy: nn.Module, **flat: Any) -> Learner:
    """Return a learner; settings that belong to one of the groups are put there, all others are its own."""
    for group, kind in _GROUPS.items():
        own = {field.name: flat.pop(field.name) for field in fields(kind) if field.name in flat}
        flat[group] = replace(flat.get(group, kind()), **own)
    return Learner(task_distribution, policy, **flat)


def navigation_learner(horizon: int = 20, hidden_sizes: tuple[int, ...] = (16,), **flat: Any) -> Learner:
    """Return a small learner of 2D navigation; every call starts with the same parameters."""
    distribution = Navigation2D(horizon)
    torch.manual_seed(0)
    policy = GaussianMLP(distribution.observation_space, distribution.action_space, hidden_sizes, "tanh")
    defaults = {"num_tasks": 4, "episodes_per_task": 5, "rule": GradientDescent(0.5)}
    return make_learner(distribution, policy, **{**defaults, **flat})


def corridor_learner(broken: str = "", hidden_sizes: tuple[int, ...] = (4,), **flat: Any) -> Learner:
    """Return a small learner of corridors, whose episodes have different lengths and discrete actions."""
    distribution = CorridorTasks(broken=broken)
    torch.manual_seed(0)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, hidden_sizes, "tanh")
    return make_learner(distribution, policy, **{"num_tasks": 3, "episodes_per_task": 2, **flat})


def play(
    envs: VectorEnv, policy: nn.Module, parameters: Parameters, tasks: Tasks, key: RolloutKey, horizon: int
) -> Episodes:
    """Play an episode in every lane."""
    family = action_distribution_for(envs.single_action_space)
    return Rollout(policy, family, horizon)(envs, parameters, tasks, key)


def random_parameters(module: nn.Module, num_tasks: int, seed: int = 0, scale: float = 0.3) -> Parameters:
    """Return parameters of a module, others for every task: its own ones plus noise, (M, ...)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + scale * torch.randn(num_tasks, *value.shape, generator=generator)
        for name, value in parameters_of(module).items()
    }


def same(a: Parameters, b: Parameters) -> bool:
    """Whether all tensors of `a` are bit for bit those of `b`."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of an iteration that do not depend on the clock."""
    return {name: value for name, value in metrics.items() if not name.startswith("seconds/")}
