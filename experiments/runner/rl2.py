"""RL^2 as a method of the experiments of reinforcement learning: its settings, its learner, its metrics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
from gymnasium.spaces import Box
from torch import nn

from metarl.core.settings import setting
from metarl.experiments.runner.flat_settings import flat_settings
from metarl.experiments.runner.machine import choose_threads
from metarl.rl.advantages import Advantages
from metarl.rl.evaluation import held_out_tasks
from metarl.rl.rl2.evaluation import TrialEvaluation, evaluate
from metarl.rl.rl2.learner import RL2Learner
from metarl.rl.rl2.learner_checks import WITHOUT_EFFECT
from metarl.rl.rl2.policies import RecurrentPolicy
from metarl.rl.rl2.ppo import TrialPPO

MakePolicy = Callable[[Any, Box, gymnasium.Space], nn.Module]

NAME = "rl2"  # of the method and of its recipes
# of the inner loop, and of the outer optimisers that differentiate through one
_LOOPS = ("rule", "objective", "outer")
# settings of other parts that a learner without an inner loop does not look at
_WITHOUT_EFFECT = ("budget", "lanes", *WITHOUT_EFFECT)


@dataclass(frozen=True)
class RL2(TrialPPO):
    """A policy with a memory that is trained on trials of several episodes."""

    memory_size: int = setting(128, "units of the GRU after the hidden layers", at_least=1)

    def without_effect(self, settings: Any) -> Mapping[str, str]:
        """RL^2 has neither an inner loop nor the outer optimisers that differentiate through one."""
        loops = [name for name, of in flat_settings(type(settings)).items() if of.part in _LOOPS]
        return dict.fromkeys([*loops, *_WITHOUT_EFFECT], "method")

    def build(self, experiment: Any, settings: Any, distribution: Any, device: str) -> RL2Learner:
        """The learner with the experiment's policy; ValueError for settings that do not go together."""
        return RL2Learner(
            distribution,
            experiment.memory_policy(settings, distribution.observation_space, distribution.action_space),
            sampling=settings.sampling,
            ppo=self,
            advantages=replace(settings.advantages, **{name: getattr(Advantages(), name) for name in WITHOUT_EFFECT}),
            seed=settings.run.seed,
            threads=choose_threads(settings.machine.threads),
            device=device,
            task_chunk=settings.machine.task_chunk or None,
        )

    def evaluate(self, settings: Any, learner: RL2Learner, split: str) -> TrialEvaluation:
        """Returns on held-out tasks in the first episode of a trial, and after `evaluation_steps` earlier ones."""
        chosen = settings.evaluation
        tasks = held_out_tasks(learner, chosen.num_tasks, split)
        return evaluate(learner, tasks, chosen.inner_steps + 1, chosen.episodes_per_task)

    def selection_metric(self, settings: Any, metrics: Mapping[str, float]) -> float:
        """The return of a whole trial in training."""
        return metrics["return/trial"]

    def progress_text(self, settings: Any, metrics: Mapping[str, float]) -> str:
        """Returns in the first and the last episode of a trial."""
        last = max(int(name.removeprefix("return/step_")) for name in metrics if name.startswith("return/step_"))
        first = f"return {metrics['return/step_0']:.1f}"
        return f"{first} -> {metrics[f'return/step_{last}']:.1f}" if last else first

    def record(self, settings: Any, learner: RL2Learner) -> dict[str, Any]:
        """The method, as there are no gradient steps to tell of."""
        return {"method": NAME}


def recurrent_policy(settings: Any, observation_space: Box, action_space: gymnasium.Space) -> nn.Module:
    """The policy of an experiment that names none for RL^2: the hidden layers, then a GRU."""
    layers = settings.policy
    return RecurrentPolicy(
        observation_space, action_space, settings.method.memory_size, layers.hidden_sizes, layers.activation
    )
