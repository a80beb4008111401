"""What the half-cheetah and ant experiments share."""

from dataclasses import dataclass

import metarl
from metarl.envs.mujoco_batch import MujocoTasks
from metarl.experiments.runner.configuration import setting, with_default
from metarl.experiments.runner.experiment import Experiment
from metarl.experiments.runner.settings import Settings, build_learner


@dataclass(frozen=True)
class LocomotionSettings(Settings):
    """Settings of a run with a simulated body."""

    dynamics: str = setting(
        "paper", "what is simulated: the paper's body or gymnasium's v5", choices=("paper", "gymnasium"), source="paper"
    )
    tasks: int = with_default(Settings, "tasks", 40, "paper")
    horizon: int = with_default(Settings, "horizon", 200, "paper")
    evaluation_episodes: int = with_default(Settings, "evaluation_episodes", 20, "paper")


def locomotion_experiment(kind: type[MujocoTasks], settings: type[LocomotionSettings]) -> Experiment:
    """The experiment that meta-trains on a task distribution over a body."""

    def build(chosen: LocomotionSettings) -> metarl.Learner:
        return build_learner(chosen, kind(chosen.dynamics, chosen.horizon))

    return Experiment(kind.name, settings, build)
