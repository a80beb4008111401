"""Meta-train a half-cheetah to run forwards or backwards, by default with the paper's settings."""

from dataclasses import dataclass

from metarl.envs import HalfCheetahDirection
from metarl.experiments.runner.configuration import with_default
from metarl.experiments.runner.locomotion import LocomotionSettings, locomotion_experiment
from metarl.experiments.runner.settings import Settings
from metarl.experiments.runner.training import main


@dataclass(frozen=True)
class DirectionSettings(LocomotionSettings):
    """Meta-train a half-cheetah with MAML-TRPO to run forwards or backwards, whichever the reward asks for."""

    max_kl: float = with_default(Settings, "max_kl", 0.02, "paper's published result")


EXPERIMENT = locomotion_experiment(HalfCheetahDirection, DirectionSettings)

if __name__ == "__main__":
    main(EXPERIMENT)
