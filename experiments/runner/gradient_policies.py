"""Gradient methods of reinforcement learning: settings of the inner loop, their learner, their metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from torch import nn

from metarl.core.rules import GradientDescent
from metarl.core.settings import check_settings, setting
from metarl.experiments.runner.machine import choose_threads
from metarl.experiments.runner.settings import same_as
from metarl.rl.estimators import ESTIMATORS
from metarl.rl.evaluation import ReturnEvaluation, evaluate, held_out_tasks
from metarl.rl.learner import Learner
from metarl.rl.policies import WithContext


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
class GradientMethod:
    """Learns a task by gradient steps, see the settings of the inner and the outer loop."""

    def without_effect(self, settings: Any) -> Mapping[str, str]:
        """Steps of size alpha / s have their size at test time, too."""
        return {"extra_step_scale": "averaged_steps"} if settings.rule.averaged else {}

    def build(self, experiment: Any, settings: Any, distribution: Any, device: str) -> Learner:
        """The learner with the experiment's policy; ValueError for settings that do not go together."""
        policy = _build_policy(experiment, settings, distribution)
        return Learner(
            distribution,
            policy,
            sampling=settings.sampling,
            rule=_build_rule(settings.rule, policy),
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

    def evaluate(self, settings: Any, learner: Learner, split: str) -> ReturnEvaluation:
        """Returns on held-out tasks after each gradient step."""
        chosen = settings.evaluation
        tasks = held_out_tasks(learner, chosen.num_tasks, split)
        return evaluate(learner, tasks, chosen.inner_steps, chosen.episodes_per_task)

    def selection_metric(self, settings: Any, metrics: Mapping[str, float]) -> float:
        """The return in training after all inner steps."""
        return metrics[f"return/step_{settings.rule.inner_steps}"]

    def progress_text(self, settings: Any, metrics: Mapping[str, float]) -> str:
        """Returns before and after adaptation."""
        return f"return {metrics['return/step_0']:.1f} -> {self.selection_metric(settings, metrics):.1f}"

    def record(self, settings: Any, learner: Learner) -> dict[str, Any]:
        """The step sizes that the learner has after its iterations."""
        rule = settings.rule.at(learner.iteration)
        scale = {} if rule.averaged else {"extra_step_scale": rule.extra_step_scale}
        return {"inner_step_size": rule.step_size, **scale}


def _build_policy(experiment: Any, settings: Any, distribution: Any) -> nn.Module:
    """The policy, which for cavia reads a context vector beside the observation."""
    observations, actions = distribution.observation_space, distribution.action_space
    if not isinstance(settings.rule, CAVIA):
        return experiment.policy(settings, observations, actions)
    size = settings.rule.context_size
    wider = Box(-np.inf, np.inf, (gymnasium.spaces.flatdim(observations) + size,))
    return WithContext(experiment.policy(settings, wider, actions), size)


def _build_rule(rule: GradientDescent, policy: nn.Module) -> GradientDescent:
    """The adaptation rule; anil's names the parameters of the policy's last layer."""
    if not isinstance(rule, ANIL):
        return rule
    last_layer = getattr(policy, "last_layer", None)
    if not isinstance(last_layer, tuple):
        raise ValueError(
            f"--adaptation = anil, but the policy {type(policy).__name__} does not say what its last layer is; "
            'allowed: a policy with the attribute last_layer, a tuple of patterns such as ("head.*",)'
        )
    return replace(rule, adapted=last_layer)
