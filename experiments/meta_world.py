"""Meta-train on Meta-World's ML1, ML10 or ML45: `python experiments/meta_world.py --benchmark ML1 --env reach-v3`."""

from dataclasses import dataclass

from metarl.core.settings import SettingError, setting
from metarl.experiments.runner.recipes import Recipe
from metarl.experiments.runner.reinforcement import EnvironmentSettings, ReinforcementExperiment, ReinforcementSettings
from metarl.experiments.runner.settings import part
from metarl.experiments.runner.training import main
from metarl.rl.task_distribution import TaskDistribution

RECIPES = {
    "maml": Recipe(
        {
            "episodes_per_task": 10,
            "horizon": 500,
            "activation": "tanh",
            "evaluation_tasks": 50,
            "evaluation_episodes": 10,
            "evaluation_steps": 1,
        },
        note="Meta-World's own protocol; the MAML paper has no such tasks",
    ),
    "maml, six tasks": Recipe({"num_tasks": 6, "episodes_per_task": 4, "max_kl": 0.02, "evaluate_every": 0}),
}


@dataclass(frozen=True)
class BenchmarkSettings(EnvironmentSettings):
    """Which of Meta-World's tasks are played."""

    benchmark: str = setting(
        "ML1", "which tasks; their test tasks are never trained on", choices=("ML1", "ML10", "ML45")
    )
    env: str = setting("reach-v3", "the environment of ML1")


@dataclass(frozen=True)
class MetaWorldSettings(ReinforcementSettings):
    """The settings of a run on Meta-World."""

    environment: BenchmarkSettings = part(BenchmarkSettings, "environment")


def tasks(settings: MetaWorldSettings) -> TaskDistribution:
    """The tasks of a benchmark."""
    from metarl.envs.meta_world import MetaWorld  # imported when a run starts: the package imports the simulators

    chosen = settings.environment
    if chosen.observe_task:
        raise SettingError("--observe-task; allowed: only where numbers say what the task is, here it is an object")
    try:
        return MetaWorld(chosen.benchmark, chosen.env, horizon=chosen.horizon)
    except ModuleNotFoundError as error:
        raise SettingError("Meta-World is not installed; pip install '.[meta-world]'") from error
    except ValueError as error:
        raise SettingError(f"--{error}") from error


EXPERIMENT = ReinforcementExperiment(
    "meta_world",
    "Meta-train a policy on a robot arm whose goal it cannot see.",
    settings=MetaWorldSettings,
    recipes=RECIPES,
    task_distribution=tasks,
)

if __name__ == "__main__":
    main(EXPERIMENT)
