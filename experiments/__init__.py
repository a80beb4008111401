"""Experiment scripts: launchers, the commands on their runs, and what was measured with them.

The names below are what a script of your own needs; they are imported when they are first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarl.core.settings import setting
    from metarl.experiments.runner.few_shot import FewShotExperiment, FewShotSettings
    from metarl.experiments.runner.recipes import Recipe
    from metarl.experiments.runner.reinforcement import (
        EnvironmentSettings,
        PolicySettings,
        ReinforcementExperiment,
        ReinforcementSettings,
    )
    from metarl.experiments.runner.settings import part
    from metarl.experiments.runner.start import open_run
    from metarl.experiments.runner.training import main

_MODULE_OF = {
    "EnvironmentSettings": "metarl.experiments.runner.reinforcement",
    "FewShotExperiment": "metarl.experiments.runner.few_shot",
    "FewShotSettings": "metarl.experiments.runner.few_shot",
    "PolicySettings": "metarl.experiments.runner.reinforcement",
    "Recipe": "metarl.experiments.runner.recipes",
    "ReinforcementExperiment": "metarl.experiments.runner.reinforcement",
    "ReinforcementSettings": "metarl.experiments.runner.reinforcement",
    "main": "metarl.experiments.runner.training",
    "open_run": "metarl.experiments.runner.start",
    "part": "metarl.experiments.runner.settings",
    "setting": "metarl.core.settings",
}

__all__ = [*_MODULE_OF]

# OpenMP threads that spin while they wait take the cores from the simulator's threads; this makes them sleep soon,
# which gave 30 % more environment steps per second on two cores. It has an effect only before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
