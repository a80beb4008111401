"""Meta-train an ant to run to a place, by default with the paper's settings."""

from dataclasses import dataclass

from metarl.envs import AntGoal
from metarl.experiments.runner.configuration import with_default
from metarl.experiments.runner.locomotion import LocomotionSettings, locomotion_experiment
from metarl.experiments.runner.settings import Settings
from metarl.experiments.runner.training import main


@dataclass(frozen=True)
class GoalSettings(LocomotionSettings):
    """Meta-train an ant with MAML-TRPO to run to a place that only the reward tells."""

    iterations: int = with_default(Settings, "iterations", 500, "as the paper's longest; this task is in its code only")


EXPERIMENT = locomotion_experiment(AntGoal, GoalSettings)

if __name__ == "__main__":
    main(EXPERIMENT)
