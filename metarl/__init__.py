"""Meta-reinforcement learning with MAML policy gradients in PyTorch."""

from metarl.adaptation import GradientDescent
from metarl.episodes import NonFiniteError
from metarl.learner import Agent, Learner, Stage
from metarl.outer import TRPO
from metarl.policies import CategoricalMLP, GaussianMLP
from metarl.randomness import keyed_generator

__all__ = [
    "TRPO",
    "Agent",
    "CategoricalMLP",
    "GaussianMLP",
    "GradientDescent",
    "Learner",
    "NonFiniteError",
    "Stage",
    "keyed_generator",
]
