"""Meta-learning in PyTorch: reinforcement learning with MAML policy gradients, and few-shot supervised learning.

The names below are imported when they are first used, so that `import metarl` is fast and has no side effects.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarl.core.adaptation import GradientDescent, LayerStepSizes, MetaSGD
    from metarl.core.errors import NonFiniteError, SimulationError
    from metarl.core.randomness import keyed_generator
    from metarl.few_shot.learner import (
        CLASSIFICATION,
        REGRESSION,
        Criterion,
        FewShotLearner,
        MAMLGradient,
        ReptileGradient,
        nearest_neighbour,
    )
    from metarl.few_shot.tasks import Examples, FewShotTasks, ImageBatches, ImageEpisodes, Sine
    from metarl.rl.agent import Agent
    from metarl.rl.learner import Learner, Stage
    from metarl.rl.outer import PPO, TRPO, Adam, Reptile
    from metarl.rl.policies import CategoricalMLP, DictObservations, GaussianMLP, WithContext

__version__ = "0.2.0"

_EXPORTS = {
    "metarl.core.adaptation": ("GradientDescent", "LayerStepSizes", "MetaSGD"),
    "metarl.core.errors": ("NonFiniteError", "SimulationError"),
    "metarl.core.randomness": ("keyed_generator",),
    "metarl.few_shot.learner": (
        "CLASSIFICATION",
        "REGRESSION",
        "Criterion",
        "FewShotLearner",
        "MAMLGradient",
        "ReptileGradient",
        "nearest_neighbour",
    ),
    "metarl.few_shot.tasks": ("Examples", "FewShotTasks", "ImageBatches", "ImageEpisodes", "Sine"),
    "metarl.rl.agent": ("Agent",),
    "metarl.rl.learner": ("Learner", "Stage"),
    "metarl.rl.outer": ("PPO", "TRPO", "Adam", "Reptile"),
    "metarl.rl.policies": ("CategoricalMLP", "DictObservations", "GaussianMLP", "WithContext"),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'metarl' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
