"""Meta-train on Bernoulli bandits with RL^2: `python experiments/bandits.py --arms 5 --pulls 10`."""

from dataclasses import dataclass

from metarl.core.settings import setting
from metarl.experiments.runner.recipes import Recipe
from metarl.experiments.runner.reinforcement import EnvironmentSettings, ReinforcementExperiment, ReinforcementSettings
from metarl.experiments.runner.settings import part, same_as
from metarl.experiments.runner.training import main
from metarl.rl.task_distribution import TaskDistribution

TRIALS = {
    "method": "rl2",
    "episodes_per_task": 1,  # all pulls: a bandit has no state that a new episode would reset
    "gae_lambda": 0.3,
    "hidden_sizes": (),
    "memory_size": 64,
    "rl2_step_size": 0.01,
    "entropy_bonus": 0.0,
    "evaluation_tasks": 2_000,
    "evaluation_episodes": 1,
    "evaluation_steps": 0,
}
RECIPES = {
    "rl2": Recipe(
        {**TRIALS, "num_tasks": 1_000, "iterations": 60},
        (6.7,),
        "Duan et al. (2016), table 1; a random policy gets 5.0, the Gittins index 6.6",
    ),
    "rl2, 10 arms, 100 pulls": Recipe(
        {
            "arms": 10,
            "pulls": 100,
            "num_tasks": 200,
            "iterations": 500,
            "rl2_step_size": 0.005,
            "gae_lambda": 0.7,
            "entropy_bonus": 0.02,
            "evaluation_tasks": 500,
        },
        (83.5,),
        "Duan et al. (2016), table 1; a random policy gets 50, the Gittins index 82.8",
    ),
}


@dataclass(frozen=True)
class BanditSettings(EnvironmentSettings):
    """Which bandits are played."""

    arms: int = setting(5, "arms of a bandit, k", at_least=2)
    horizon: int = same_as(
        EnvironmentSettings, "horizon", default=10, help="pulls of an episode", unit="pulls", flag="pulls"
    )


@dataclass(frozen=True)
class BanditRunSettings(ReinforcementSettings):
    """The settings of a run on bandits."""

    environment: BanditSettings = part(BanditSettings, "environment")


def tasks(settings: BanditRunSettings) -> TaskDistribution:
    """Bandits whose arms pay with unknown probabilities."""
    from metarl.envs import BernoulliBandits  # imported when a run starts: the package imports the simulators

    return BernoulliBandits(settings.environment.arms, settings.environment.horizon)


EXPERIMENT = ReinforcementExperiment(
    "bandits",
    "Meta-train a policy that finds out which arm of a bandit pays best.",
    settings=BanditRunSettings,
    recipes=RECIPES,
    paper_recipe="rl2",
    task_distribution=tasks,
)

if __name__ == "__main__":
    main(EXPERIMENT)
