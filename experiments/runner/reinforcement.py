"""Meta-reinforcement learning: the settings that all its experiments share, and the learner built from them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.spaces import Box, Discrete
from torch import nn

from metarl.core.errors import SimulationError
from metarl.core.rules import GradientDescent, LayerStepSizes, MetaSGD
from metarl.core.settings import SettingError, check_settings, setting
from metarl.experiments.runner.experiment import Experiment, step
from metarl.experiments.runner.flat_settings import in_flags
from metarl.experiments.runner.gradient_policies import ANIL, CAVIA, GradientMethod, Objective
from metarl.experiments.runner.machine import prepare_process
from metarl.experiments.runner.rl2 import NAME as RL2_NAME
from metarl.experiments.runner.rl2 import RL2, MakePolicy, recurrent_policy
from metarl.experiments.runner.settings import EVALUATION, EvaluationSettings, Settings, part, same_as, variants
from metarl.rl.advantages import Advantages
from metarl.rl.evaluation import TaskEvaluation
from metarl.rl.learner import Learner
from metarl.rl.outer import PPO, TRPO, Adam, OuterOptimiser, Reptile
from metarl.rl.policies import ACTIVATIONS, CategoricalMLP, GaussianMLP
from metarl.rl.rl2.learner import RL2Learner
from metarl.rl.sampler import Sampling
from metarl.rl.task_distribution import TaskDistribution, protocol_defects, record_defects

AnyLearner = Learner | RL2Learner


@dataclass(frozen=True)
class PolicySettings:
    """A network with one hidden layer or more."""

    hidden_sizes: tuple[int, ...] = setting((100, 100), "widths of the hidden layers", at_least=1)
    activation: str = setting("relu", "function after each hidden layer", choices=tuple(ACTIVATIONS))

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class EnvironmentSettings:
    """What is played."""

    horizon: int = setting(100, "length of an episode", unit="steps", at_least=1)
    observe_task: bool = setting(False, "show the task to the policy, as the oracle of the paper's figures sees it")
    max_failed: float = setting(
        0.1,
        "share of an iteration's episodes that may blow up before the run stops",
        at_least=0,
        at_most=1,
        changeable=True,
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class EpisodeEvaluation(EvaluationSettings):
    """How a policy is evaluated on held-out tasks."""

    inner_steps: int = same_as(
        EvaluationSettings, "inner_steps", help="gradient steps on them; with rl2, earlier episodes of a trial"
    )
    episodes_per_task: int = setting(
        40,
        "episodes per held-out task and step; with rl2, trials per task",
        at_least=1,
        flag="evaluation_episodes",
        changeable=True,
    )


@dataclass(frozen=True)
class ReinforcementSettings(Settings):
    """The settings of a meta-reinforcement-learning run."""

    method: GradientMethod | RL2 = variants(
        "method",
        "how a task is learned: by gradient steps (maml and its kin), or by a memory (rl2)",
        {"maml": GradientMethod, RL2_NAME: RL2},
        "method",
    )
    sampling: Sampling = part(Sampling, "sampling")
    advantages: Advantages = part(Advantages, "sampling")
    rule: GradientDescent = variants(
        "adaptation",
        "what the inner loop moves: all parameters (maml); with learned step sizes per parameter, or per tensor and "
        "step; the last layer (anil); a context vector (cavia)",
        {
            "maml": GradientDescent,
            "meta-sgd": MetaSGD,
            "layer-step-sizes": LayerStepSizes,
            "anil": ANIL,
            "cavia": CAVIA,
        },
        "inner loop",
    )
    objective: Objective = part(Objective, "inner loop")
    outer: OuterOptimiser = variants(
        "outer", "outer optimiser", {"trpo": TRPO, "ppo": PPO, "adam": Adam, "reptile": Reptile}, "outer loop"
    )
    policy: PolicySettings = part(PolicySettings, "policy")
    environment: EnvironmentSettings = part(EnvironmentSettings, "environment")
    evaluation: EpisodeEvaluation = part(EpisodeEvaluation, EVALUATION)

    @property
    def without_effect(self) -> Mapping[str, str]:
        """What the method does not look at."""
        return self.method.without_effect(self)


def mlp_policy(settings: ReinforcementSettings, observation_space: Box, action_space: gymnasium.Space) -> nn.Module:
    """The policy of an experiment that names none: a Gaussian MLP, or a categorical one for `Discrete` actions."""
    kind = CategoricalMLP if isinstance(action_space, Discrete) else GaussianMLP
    return kind(observation_space, action_space, settings.policy.hidden_sizes, settings.policy.activation)


@dataclass(frozen=True)
class ReinforcementExperiment(Experiment):
    """An experiment whose learner is a `Learner`.

    Attributes:
        task_distribution: makes the tasks, given the settings.
        policy: makes the policy, given the settings, the space of what it sees and that of actions.
        memory_policy: makes the one of rl2, given the same; see `metarl.rl.rl2.policies`.
        draw: makes pictures of an evaluation, by name.
    """

    settings: type[ReinforcementSettings] = field(default=ReinforcementSettings, kw_only=True)
    task_distribution: Callable[[Any], TaskDistribution] = field(kw_only=True)
    policy: Callable[[Any, Box, gymnasium.Space], nn.Module] = field(default=mlp_policy, kw_only=True)
    memory_policy: MakePolicy = field(default=recurrent_policy, kw_only=True)
    draw: Callable[[Any], dict[str, Any]] | None = field(default=None, kw_only=True)

    def recipe_name(self, name: str, changes: Mapping[str, Any] | None = None) -> str:
        """As of any experiment; where no recipe but rl2 is named, the recipe of that name if there is one."""
        if not name and (changes or {}).get("method") == RL2_NAME and RL2_NAME in self.recipes:
            return RL2_NAME
        return super().recipe_name(name, changes)

    def build(self, settings: ReinforcementSettings) -> Learner | RL2Learner:
        """As of any experiment: the experiment's policy on its tasks."""
        device = prepare_process(settings)
        try:
            distribution = self._build_tasks(settings)
            return settings.method.build(self, settings, distribution, device)
        except ValueError as error:  # settings that do not go together
            raise SettingError(in_flags(str(error), self.settings)) from error

    def _build_tasks(self, settings: ReinforcementSettings) -> Any:
        """The task distribution, which has all that a run will need; ValueError for one that has not."""
        distribution: Any = self.task_distribution(settings)
        count = settings.sampling.num_tasks
        if defects := protocol_defects(distribution, count) or record_defects(distribution, count):
            raise ValueError(defects[0])
        if (horizon := settings.environment.horizon) != distribution.horizon:
            raise ValueError(
                f"--horizon = {horizon}, but episodes of the task distribution have {distribution.horizon} steps; "
                f"allowed: {distribution.horizon}, or tasks that are made with settings.environment.horizon"
            )
        if not settings.environment.observe_task:
            return distribution
        from metarl.envs import ObservedTasks  # which imports the simulators

        return ObservedTasks(distribution)

    def advance(self, settings: ReinforcementSettings, learner: AnyLearner) -> tuple[AnyLearner, dict[str, float]]:
        """As of any experiment: one meta-iteration."""
        started, steps_before = time.perf_counter(), learner.env_steps
        learner, metrics = step(settings, learner, settings.sampling.num_tasks)
        seconds = time.perf_counter() - started
        failed, episodes = int(metrics["failed_episodes"]), int(metrics["episodes"])
        what = f"{failed} of {episodes} episodes of iteration {learner.iteration}"
        _check_failures(failed / episodes, what, settings)
        return learner, {**metrics, "steps_per_second": (learner.env_steps - steps_before) / seconds}

    def selection_metric(self, settings: ReinforcementSettings, metrics: Mapping[str, float]) -> float:
        """The return in training that the method is judged by."""
        return settings.method.selection_metric(settings, metrics)

    def progress_text(self, settings: ReinforcementSettings, metrics: Mapping[str, float]) -> str:
        """Returns before and after adaptation, and speed."""
        failed = f", {metrics['failed_episodes']:.0f} episodes blew up" if metrics["failed_episodes"] else ""
        returns = settings.method.progress_text(settings, metrics)
        return f"{returns}, {metrics['steps_per_second']:,.0f} steps/s" + failed

    def evaluate(self, settings: ReinforcementSettings, learner: Any, split: str) -> TaskEvaluation:
        """As of any experiment: returns on held-out tasks."""
        evaluation = settings.method.evaluate(settings, learner, split)
        share = float(evaluation.failures.mean())
        _check_failures(share, f"{share:.1%} of the episodes of an evaluation", settings)
        return evaluation

    def plots(self, evaluation: TaskEvaluation) -> dict[str, Any]:
        """As of any experiment."""
        return self.draw(evaluation) if self.draw is not None else {}

    def record(self, settings: ReinforcementSettings, learner: Any) -> dict[str, Any]:
        """As of any experiment."""
        return {
            "dynamics": getattr(learner.task_distribution, "dynamics", None),
            "seed": settings.run.seed,
            "iteration": learner.iteration,
            "env_steps": learner.env_steps,
            "episodes_per_step": settings.evaluation.episodes_per_task,
            **settings.method.record(settings, learner),
        }


def _check_failures(share: float, what: str, settings: ReinforcementSettings) -> None:
    allowed = settings.environment.max_failed
    if share > allowed:
        raise SimulationError(f"{what} blew up; allowed: a share of {allowed:g} (--max-failed)")
