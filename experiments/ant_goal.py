"""Meta-train an ant to run to a place, by default with the paper's settings."""

from dataclasses import dataclass

from envs import AntGoal
from experiments.configuration import with_default
from experiments.locomotion import LocomotionSettings, locomotion_experiment
from experiments.settings import Settings
from experiments.training import main


@dataclass(frozen=True)
class GoalSettings(LocomotionSettings):
    """Meta-train an ant with MAML-TRPO to run to a place that only the reward tells."""

    iterations: int = with_default(Settings, "iterations", 500, "as the paper's longest; this task is in its code only")


EXPERIMENT = locomotion_experiment(AntGoal, GoalSettings)

if __name__ == "__main__":
    main(EXPERIMENT)
