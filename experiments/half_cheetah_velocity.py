"""Meta-train a half-cheetah to run at a velocity, by default with the paper's settings."""

from dataclasses import dataclass

from metarl.envs import HalfCheetahVelocity
from metarl.experiments.runner.configuration import with_default
from metarl.experiments.runner.locomotion import LocomotionSettings, locomotion_experiment
from metarl.experiments.runner.settings import Settings
from metarl.experiments.runner.training import main


@dataclass(frozen=True)
class VelocitySettings(LocomotionSettings):
    """Meta-train a half-cheetah with MAML-TRPO to run at a velocity that only the reward tells."""

    iterations: int = with_default(Settings, "iterations", 475, "paper's published result")
    episodes: int = with_default(Settings, "episodes", 10, "paper's code")


EXPERIMENT = locomotion_experiment(HalfCheetahVelocity, VelocitySettings)

if __name__ == "__main__":
    main(EXPERIMENT)
