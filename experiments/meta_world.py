"""Meta-train on Meta-World's benchmarks: `python experiments/meta_world.py --benchmark ML1 --env reach-v3`."""

from dataclasses import dataclass

from metarl.core.settings import SettingError, setting
from metarl.experiments.runner.goal_evaluation import evaluate_goals
from metarl.experiments.runner.recipes import Recipe
from metarl.experiments.runner.reinforcement import EnvironmentSettings, ReinforcementExperiment, ReinforcementSettings
from metarl.experiments.runner.settings import part
from metarl.experiments.runner.training import main
from metarl.rl.evaluation import ReturnEvaluation, TaskEvaluation
from metarl.rl.learner import Learner
from metarl.rl.task_distribution import TaskDistribution

LANES = {"ML1": 10, "ML10": 20, "ML25": 25, "ML45": 45}  # goals in a batch of the official evaluation
SMALL = {
    "num_tasks": 5,
    "episodes_per_task": 4,
    "iterations": 100,
    "max_kl": 0.02,
    "gae_lambda": 0.95,
    "evaluate_every": 0,  # an evaluation takes as many steps as 25 iterations
}
RECIPES = {
    "maml": Recipe(
        {
            "episodes_per_task": 10,
            "horizon": 500,
            "activation": "tanh",
            "validation_goals": 10,
            "evaluation_tasks": 50,
            "evaluation_episodes": 10,
            "evaluation_steps": 1,
        },
        note="Meta-World's own protocol; the MAML paper has no such tasks",
    ),
    "maml, six tasks": Recipe(
        {"num_tasks": 6, "episodes_per_task": 4, "max_kl": 0.02, "evaluate_every": 0, "validation_goals": 0}
    ),
    "maml, 512 units": Recipe(
        {"num_tasks": 10, "iterations": 20, "hidden_sizes": (512, 512), "evaluate_every": 0},
        note="sizes of Meta-World's own runs on ML1: 2 million steps in 20 iterations",
    ),
    "small batches": Recipe(SMALL, note="as many steps in 100 iterations, which may not suit every environment"),
    "small batches, ML10": Recipe(
        {
            **SMALL,
            "benchmark": "ML10",
            "num_tasks": 10,
            "iterations": 500,
            "evaluation_tasks": 200,
            "evaluate_every": 0,
        },
        note="a goal of each training environment in a meta-batch; 20 million steps",
    ),
}


@dataclass(frozen=True)
class BenchmarkSettings(EnvironmentSettings):
    """Which of Meta-World's tasks are played."""

    benchmark: str = setting(
        "ML1",
        "which tasks; their test tasks are never trained on, but ML25 has basketball in both of its sets",
        choices=tuple(LANES),
    )
    env: str = setting("reach-v3", "the environment of ML1")
    reward_version: str = setting(
        "v2", "of the rewards: in [0, 10], or those of the first publication (v1)", choices=("v2", "v1")
    )
    validation_goals: int = setting(
        0,
        "training goals of each environment that are kept back as validation tasks; with 0 they are training tasks",
        at_least=0,
        at_most=49,
    )


@dataclass(frozen=True)
class MetaWorldSettings(ReinforcementSettings):
    """The settings of a run on Meta-World."""

    environment: BenchmarkSettings = part(BenchmarkSettings, "environment")


def tasks(settings: MetaWorldSettings) -> TaskDistribution:
    """The tasks of a benchmark."""
    from metarl.envs.meta_world import MetaWorld  # imported when a run starts: the package imports the simulators

    chosen = settings.environment
    if chosen.observe_task:
        raise SettingError("--observe-task; allowed: only where numbers say what the task is, here it is an object")
    try:
        return MetaWorld(
            chosen.benchmark,
            chosen.env,
            horizon=chosen.horizon,
            reward_version=chosen.reward_version,
            validation_goals=chosen.validation_goals,
        )
    except ModuleNotFoundError as error:
        raise SettingError("Meta-World is not installed; pip install '.[meta-world]'") from error
    except ValueError as error:
        raise SettingError(f"--{error}") from error


class MetaWorldExperiment(ReinforcementExperiment):
    """Evaluations on test tasks also count successes as Meta-World does, and of every goal."""

    def evaluate(self, settings: MetaWorldSettings, learner: Learner, split: str) -> TaskEvaluation:  # type: ignore[override]
        """As of any experiment; those of rl2 have the success rate of each episode alone."""
        evaluation = super().evaluate(settings, learner, split)
        if split != "test" or not isinstance(evaluation, ReturnEvaluation):
            return evaluation
        names = learner.task_distribution.names(evaluation.tasks)  # type: ignore[attr-defined]  # of MetaWorld
        return evaluate_goals(learner, evaluation, names, LANES[settings.environment.benchmark])


EXPERIMENT = MetaWorldExperiment(
    "meta_world",
    "Meta-train a policy on a robot arm whose goal it cannot see.",
    settings=MetaWorldSettings,
    recipes=RECIPES,
    task_distribution=tasks,
)

if __name__ == "__main__":
    main(EXPERIMENT)
