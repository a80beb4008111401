"""Meta-train on random tabular decision processes with RL^2: `python experiments/random_mdps.py`."""

from dataclasses import dataclass

from metarl.core.settings import setting
from metarl.experiments.runner.recipes import Recipe
from metarl.experiments.runner.reinforcement import EnvironmentSettings, ReinforcementExperiment, ReinforcementSettings
from metarl.experiments.runner.settings import part, same_as
from metarl.experiments.runner.training import main
from metarl.rl.task_distribution import TaskDistribution

RECIPES = {
    "rl2": Recipe(
        {
            "method": "rl2",
            "num_tasks": 300,
            "episodes_per_task": 10,
            "iterations": 500,
            "gae_lambda": 0.3,
            "hidden_sizes": (),
            "rl2_step_size": 0.005,
            "entropy_bonus": 0.0,
            "evaluation_tasks": 1_000,
            "evaluation_episodes": 1,
            "evaluation_steps": 9,
        },
        note="Duan et al. (2016), table 2: 156.2 in a trial; a random policy gets 100.1, PSRL 138.1",
    ),
}


@dataclass(frozen=True)
class ProcessSettings(EnvironmentSettings):
    """Which decision processes are played."""

    states: int = setting(10, "states of a decision process, S", at_least=2)
    actions: int = setting(5, "actions, A", at_least=2)
    horizon: int = same_as(EnvironmentSettings, "horizon", default=10)


@dataclass(frozen=True)
class ProcessRunSettings(ReinforcementSettings):
    """The settings of a run on random decision processes."""

    environment: ProcessSettings = part(ProcessSettings, "environment")


def tasks(settings: ProcessRunSettings) -> TaskDistribution:
    """Decision processes whose rewards and transitions are not known."""
    from metarl.envs import RandomMDPs  # imported when a run starts: the package imports the simulators

    chosen = settings.environment
    return RandomMDPs(chosen.states, chosen.actions, chosen.horizon)


EXPERIMENT = ReinforcementExperiment(
    "random_mdps",
    "Meta-train a policy that explores a random decision process and then exploits what it has found.",
    settings=ProcessRunSettings,
    recipes=RECIPES,
    paper_recipe="rl2",
    task_distribution=tasks,
)

if __name__ == "__main__":
    main(EXPERIMENT)
