"""Meta-train on Meta-World's ML1, ML10 or ML45: `python experiments/meta_world.py --benchmark ML1 --env reach-v3`."""

from dataclasses import dataclass

import metarl
from metarl.envs.meta_world import BENCHMARKS, MetaWorld
from metarl.experiments.runner.configuration import SettingError, setting, with_default
from metarl.experiments.runner.experiment import Experiment
from metarl.experiments.runner.settings import Settings, build_learner
from metarl.experiments.runner.training import main

_OURS = "Meta-World's own"


@dataclass(frozen=True)
class MetaWorldSettings(Settings):
    """Meta-train a policy with MAML-TRPO on a robot arm whose goal it cannot see."""

    benchmark: str = setting("ML1", "which tasks; their test tasks are never trained on", choices=BENCHMARKS)
    env: str = setting("reach-v3", "the environment of ML1")
    episodes: int = with_default(Settings, "episodes", 10, _OURS)
    horizon: int = with_default(Settings, "horizon", 500, _OURS)
    activation: str = with_default(Settings, "activation", "tanh", _OURS)
    evaluation_tasks: int = with_default(Settings, "evaluation_tasks", 50, _OURS)
    evaluation_episodes: int = with_default(Settings, "evaluation_episodes", 10, _OURS)
    evaluation_steps: int = with_default(Settings, "evaluation_steps", 1, _OURS)


def build(settings: MetaWorldSettings) -> metarl.Learner:
    """The learner on a benchmark."""
    if settings.observe_task:
        raise SettingError("--observe-task; allowed: only where numbers say what the task is, here it is an object")
    try:
        distribution = MetaWorld(settings.benchmark, settings.env, horizon=settings.horizon)
    except ModuleNotFoundError as error:
        raise SettingError("Meta-World is not installed; pip install '.[meta-world]'") from error
    except ValueError as error:
        raise SettingError(f"--{error}") from error
    return build_learner(settings, distribution)


EXPERIMENT = Experiment("meta_world", MetaWorldSettings, build)

if __name__ == "__main__":
    main(EXPERIMENT)
