"""Meta-train an ant to run at a velocity, by default with the paper's settings."""

from dataclasses import dataclass

from metarl.envs import AntVelocity
from metarl.experiments.runner.configuration import with_default
from metarl.experiments.runner.locomotion import LocomotionSettings, locomotion_experiment
from metarl.experiments.runner.settings import Settings
from metarl.experiments.runner.training import main


@dataclass(frozen=True)
class VelocitySettings(LocomotionSettings):
    """Meta-train an ant with MAML-TRPO to run at a velocity that only the reward tells."""

    iterations: int = with_default(Settings, "iterations", 375, "paper's published result")


EXPERIMENT = locomotion_experiment(AntVelocity, VelocitySettings)

if __name__ == "__main__":
    main(EXPERIMENT)
