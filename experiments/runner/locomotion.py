"""What the experiments with simulated bodies share."""

from collections.abc import Mapping
from dataclasses import dataclass

from metarl.core.settings import setting
from metarl.experiments.runner.recipes import RECOMMENDED, Recipe, memory, recommended
from metarl.experiments.runner.reinforcement import EnvironmentSettings, ReinforcementExperiment, ReinforcementSettings
from metarl.experiments.runner.settings import part
from metarl.rl.task_distribution import TaskDistribution

PAPER = {"num_tasks": 40, "horizon": 200, "evaluation_episodes": 20}  # of all of them
PEERS = {"dynamics": "peers"}


def random_parameters(iterations: int) -> dict[str, Recipe]:
    """The recipes of bodies with random parameters, for as many iterations of 10 tasks."""
    return {
        "maml": Recipe({**PAPER, **PEERS}, note="settings of the MAML paper, which has no such tasks"),
        RECOMMENDED: recommended(10, iterations, second_order=False, episodes_per_task=10),
        "rl2": memory(200, iterations),
    }


@dataclass(frozen=True)
class BodySettings(EnvironmentSettings):
    """What is played, with a simulated body."""

    dynamics: str = setting(
        "paper",
        "what is simulated: as in the paper's code; gymnasium's v5; as in ProMP, PEARL and VariBAD (peers)",
        choices=("paper", "gymnasium", "peers"),
    )


@dataclass(frozen=True)
class LocomotionSettings(ReinforcementSettings):
    """The settings of a run with a simulated body."""

    environment: BodySettings = part(BodySettings, "environment")


def locomotion_experiment(
    name: str, description: str, distribution: str, recipes: Mapping[str, Recipe]
) -> ReinforcementExperiment:
    """The experiment that meta-trains on a task distribution over a body.

    Args:
        name: of the script.
        description: one sentence, for the help.
        distribution: the name of the class in `metarl.envs`.
        recipes: named settings.
    """

    def tasks(settings: LocomotionSettings) -> TaskDistribution:
        from metarl import envs  # imported when a run starts: the package imports the simulators

        return getattr(envs, distribution)(settings.environment.dynamics, settings.environment.horizon)

    return ReinforcementExperiment(
        name, description, settings=LocomotionSettings, recipes=recipes, task_distribution=tasks
    )
