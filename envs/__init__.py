"""Task distributions and their batched simulators on numpy, gymnasium and mujoco; no learning here."""

from functools import partial

import gymnasium

from .ant import AntDirection, AntGoal, AntVelocity
from .bandits import BernoulliBandits
from .gymnasium_tasks import GymnasiumTasks
from .half_cheetah import HalfCheetahDirection, HalfCheetahVelocity
from .humanoid import HumanoidDirection
from .navigation import Navigation2D
from .oracle import ObservedTasks
from .random_mdps import RandomMDPs
from .random_parameters import HopperParameters, WalkerParameters
from .tasks import SingleTaskEnv, TaskBatch, TaskDistribution, Tasks, check_tasks
from .vector_tasks import VectorTasks, choose_from

__all__ = [
    "AntDirection",
    "AntGoal",
    "AntVelocity",
    "BernoulliBandits",
    "GymnasiumTasks",
    "HalfCheetahDirection",
    "HalfCheetahVelocity",
    "HopperParameters",
    "HumanoidDirection",
    "Navigation2D",
    "ObservedTasks",
    "RandomMDPs",
    "SingleTaskEnv",
    "TaskBatch",
    "TaskDistribution",
    "Tasks",
    "VectorTasks",
    "WalkerParameters",
    "check_tasks",
    "choose_from",
]


def _single(distribution: type, render_mode: str | None = None, **settings) -> SingleTaskEnv:
    return SingleTaskEnv(distribution(**settings), render_mode)


for _distribution in (
    Navigation2D,
    HalfCheetahDirection,
    HalfCheetahVelocity,
    AntVelocity,
    AntDirection,
    AntGoal,
    HumanoidDirection,
    WalkerParameters,
    HopperParameters,
    BernoulliBandits,
    RandomMDPs,
):
    gymnasium.register(f"metarl/{_distribution.__name__}-v0", entry_point=partial(_single, _distribution))
