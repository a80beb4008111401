"""Task distributions and their batched simulators. Needs numpy, gymnasium and mujoco; knows nothing of learning."""

from functools import partial

import gymnasium

from envs.navigation import Navigation2D
from envs.tasks import SingleTaskEnv, TaskBatch, TaskDistribution, Tasks, check_tasks

__all__ = ["Navigation2D", "SingleTaskEnv", "TaskBatch", "TaskDistribution", "Tasks", "check_tasks"]


def _single(distribution: type, **settings) -> SingleTaskEnv:
    return SingleTaskEnv(distribution(**settings))


for _distribution in (Navigation2D,):
    gymnasium.register(
        f"metarl/{_distribution.__name__}-v0",
        entry_point=partial(_single, _distribution),
    )
