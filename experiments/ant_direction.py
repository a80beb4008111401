"""Meta-train an ant to run forwards or backwards, by default with the paper's settings."""

from dataclasses import dataclass

from metarl.envs import AntDirection
from metarl.experiments.runner.configuration import with_default
from metarl.experiments.runner.locomotion import LocomotionSettings, locomotion_experiment
from metarl.experiments.runner.settings import Settings
from metarl.experiments.runner.training import main


@dataclass(frozen=True)
class DirectionSettings(LocomotionSettings):
    """Meta-train an ant with MAML-TRPO to run forwards or backwards, whichever the reward asks for."""

    iterations: int = with_default(Settings, "iterations", 575, "paper's published result")
    episodes: int = with_default(Settings, "episodes", 40, "paper")
    later_factor: float = with_default(Settings, "later_factor", 0.01, "paper's code")
    evaluation_episodes: int = with_default(Settings, "evaluation_episodes", 40, "paper")


EXPERIMENT = locomotion_experiment(AntDirection, DirectionSettings)

if __name__ == "__main__":
    main(EXPERIMENT)
