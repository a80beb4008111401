"""Meta-reinforcement learning with MAML policy gradients in PyTorch."""

import os

# OpenMP threads that spin while they wait take the cores from the simulator's threads; this makes them sleep soon.
# It works only if torch has not been imported before. 30 % more steps per second on two cores.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from metarl.acting import Agent
from metarl.adaptation import GradientDescent, LayerStepSizes, MetaSGD
from metarl.episodes import NonFiniteError, SimulationError
from metarl.few_shot import (
    CLASSIFICATION,
    REGRESSION,
    Criterion,
    FewShotLearner,
    MAMLGradient,
    ReptileGradient,
    nearest_neighbour,
)
from metarl.few_shot_tasks import Examples, FewShotTasks, ImageBatches, ImageEpisodes, Sine
from metarl.learner import Learner, Stage
from metarl.outer import PPO, TRPO, Adam, Reptile
from metarl.policies import CategoricalMLP, DictObservations, GaussianMLP, WithContext
from metarl.randomness import keyed_generator

__all__ = [
    "CLASSIFICATION",
    "PPO",
    "REGRESSION",
    "TRPO",
    "Adam",
    "Agent",
    "CategoricalMLP",
    "Criterion",
    "DictObservations",
    "Examples",
    "FewShotLearner",
    "FewShotTasks",
    "GaussianMLP",
    "GradientDescent",
    "ImageBatches",
    "ImageEpisodes",
    "LayerStepSizes",
    "Learner",
    "MAMLGradient",
    "MetaSGD",
    "NonFiniteError",
    "Reptile",
    "ReptileGradient",
    "SimulationError",
    "Sine",
    "Stage",
    "WithContext",
    "keyed_generator",
    "nearest_neighbour",
]
