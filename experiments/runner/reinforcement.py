"""Meta-reinforcement learning: the settings that all its experiments share, and the learner built from them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from torch import nn

from metarl.core.errors import SimulationError
from metarl.core.rules import GradientDescent, LayerStepSizes, MetaSGD
from metarl.core.settings import SettingError, check_settings, setting
from metarl.experiments.runner import rl2
from metarl.experiments.runner.experiment import Experiment, step
from metarl.experiments.runner.flat_settings import flat_settings, in_flags
from metarl.experiments.runner.machine import choose_threads, prepare_process
from metarl.experiments.runner.rl2 import RL2
from metarl.experiments.runner.settings import EVALUATION, EvaluationSettings, Settings, part, same_as, variants
from metarl.rl.advantages import Advantages
from metarl.rl.estimators import ESTIMATORS
from metarl.rl.evaluation import TaskEvaluation, evaluate, held_out_tasks
from metarl.rl.learner import Learner
from metarl.rl.outer import PPO, TRPO, Adam, OuterOptimiser, Reptile
from metarl.rl.policies import ACTIVATIONS, CategoricalMLP, GaussianMLP, WithContext
from metarl.rl.rl2.learner import RL2Learner
from metarl.rl.sampler import Sampling
from metarl.rl.task_distribution import TaskDistribution, protocol_defects, record_defects

RL2_NAME = "rl2"  # of the method and of its recipes

AnyLearner = Learner | RL2Learner


@dataclass(frozen=True)
class GradientMethod:
    """Learns a task by gradient steps, see the settings of the inner and the outer loop."""


@dataclass(frozen=True)
class ANIL(GradientDescent):
    """Gradient descent on the head of the network alone: the last layer and the log standard deviation."""


@dataclass(frozen=True)
class CAVIA(GradientDescent):
    """Gradient descent on a context vector alone, which starts at zero and which the policy reads as an input."""

    adapted: tuple[str, ...] = ("context",)
    from_zero: bool = True
    context_size: int = setting(5, "numbers in the context vector", at_least=1)


@dataclass(frozen=True)
class Objective:
    """The inner loss, and what the meta-gradient holds."""

    estimator: str = setting(
        "score", "inner loss; the estimators differ in their second derivatives", choices=tuple(ESTIMATORS)
    )
    step_unit: str = same_as(Learner, "step_unit")
    initial_sampling: bool = same_as(Learner, "initial_sampling")
    multi_step: bool = same_as(Learner, "multi_step")

    def __post_init__(self) -> None:
        check_settings(self)


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
        """RL^2 has neither an inner loop nor the outer optimisers that differentiate through one."""
        if not isinstance(self.method, RL2):
            return {}
        known = flat_settings(type(self))
        loops = [name for name, of in known.items() if of.part in ("rule", "objective", "outer")]
        return dict.fromkeys([*loops, *rl2.WITHOUT_EFFECT], "method")


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
    memory_policy: rl2.MakePolicy = field(default=rl2.recurrent_policy, kw_only=True)
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
            if isinstance(settings.method, RL2):
                return rl2.build(settings, distribution, self.memory_policy, device)
            policy = self._build_policy(settings, distribution)
            return Learner(
                distribution,
                policy,
                sampling=settings.sampling,
                rule=_build_rule(settings, policy),
                outer=settings.outer,
                advantages=settings.advantages,
                estimator=ESTIMATORS[settings.objective.estimator],
                step_unit=settings.objective.step_unit,
                initial_sampling=settings.objective.initial_sampling,
                multi_step=settings.objective.multi_step,
                seed=settings.run.seed,
                threads=choose_threads(settings.machine.threads),
                device=device,
                task_chunk=settings.machine.task_chunk or None,
            )
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

    def _build_policy(self, settings: ReinforcementSettings, distribution: Any) -> nn.Module:
        """The policy, which for cavia reads a context vector beside the observation."""
        observations, actions = distribution.observation_space, distribution.action_space
        if not isinstance(settings.rule, CAVIA):
            return self.policy(settings, observations, actions)
        size = settings.rule.context_size
        wider = Box(-np.inf, np.inf, (gymnasium.spaces.flatdim(observations) + size,))
        return WithContext(self.policy(settings, wider, actions), size)

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
        """The return in training after all inner steps; of RL^2, that of a whole trial."""
        if isinstance(settings.method, RL2):
            return rl2.selection_metric(metrics)
        return metrics[f"return/step_{settings.rule.inner_steps}"]

    def progress_text(self, settings: ReinforcementSettings, metrics: Mapping[str, float]) -> str:
        """Returns before and after adaptation, and speed."""
        failed = f", {metrics['failed_episodes']:.0f} episodes blew up" if metrics["failed_episodes"] else ""
        after, speed = self.selection_metric(settings, metrics), metrics["steps_per_second"]
        returns = f"return {metrics['return/step_0']:.1f} -> {after:.1f}"
        if isinstance(settings.method, RL2):
            returns = rl2.progress_text(metrics)
        return f"{returns}, {speed:,.0f} steps/s" + failed

    def evaluate(self, settings: ReinforcementSettings, learner: AnyLearner, split: str) -> TaskEvaluation:
        """As of any experiment: returns on held-out tasks."""
        evaluation: TaskEvaluation
        if isinstance(learner, RL2Learner):
            evaluation = rl2.evaluate_trials(settings, learner, split)
        else:
            chosen = settings.evaluation
            tasks = held_out_tasks(learner, chosen.num_tasks, split)
            evaluation = evaluate(learner, tasks, chosen.inner_steps, chosen.episodes_per_task)
        share = float(evaluation.failures.mean())
        _check_failures(share, f"{share:.1%} of the episodes of an evaluation", settings)
        return evaluation

    def plots(self, evaluation: TaskEvaluation) -> dict[str, Any]:
        """As of any experiment."""
        return self.draw(evaluation) if self.draw is not None else {}

    def record(self, settings: ReinforcementSettings, learner: AnyLearner) -> dict[str, Any]:
        """As of any experiment."""
        common = {
            "dynamics": getattr(learner.task_distribution, "dynamics", None),
            "seed": settings.run.seed,
            "iteration": learner.iteration,
            "env_steps": learner.env_steps,
            "episodes_per_step": settings.evaluation.episodes_per_task,
        }
        if isinstance(settings.method, RL2):
            return {**common, "method": RL2_NAME}
        rule = settings.rule.at(learner.iteration)
        return {**common, "inner_step_size": rule.step_size, "extra_step_scale": rule.extra_step_scale}


def _build_rule(settings: ReinforcementSettings, policy: nn.Module) -> GradientDescent:
    """The adaptation rule; anil's names the parameters of the policy's last layer."""
    if not isinstance(settings.rule, ANIL):
        return settings.rule
    last_layer = getattr(policy, "last_layer", None)
    if not isinstance(last_layer, tuple):
        raise ValueError(
            f"--adaptation = anil, but the policy {type(policy).__name__} does not say what its last layer is; "
            'allowed: a policy with the attribute last_layer, a tuple of patterns such as ("head.*",)'
        )
    return replace(settings.rule, adapted=last_layer)


def _check_failures(share: float, what: str, settings: ReinforcementSettings) -> None:
    allowed = settings.environment.max_failed
    if share > allowed:
        raise SimulationError(f"{what} blew up; allowed: a share of {allowed:g} (--max-failed)")
