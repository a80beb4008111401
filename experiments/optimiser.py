"""Meta-train an optimiser of random quadratics: `python experiments/optimiser.py`, by default the paper's LSTM."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from metarl.core.settings import check_settings, setting
from metarl.experiments.runner.few_shot import (
    BuildsMethod,
    Episodes,
    FewShotEvaluationSettings,
    FewShotExperiment,
    FewShotRun,
    FewShotSettings,
    MakeModule,
)
from metarl.experiments.runner.recipes import Recipe
from metarl.experiments.runner.settings import EVALUATION, RUN, part, same_as, variants
from metarl.experiments.runner.training import main
from metarl.few_shot.criteria import Criterion
from metarl.few_shot.evaluation import FewShotEvaluation
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.learned_optimisers import CoordinateLSTM, LearnedOptimiser, TunedOptimiser
from metarl.few_shot.methods.unrolled_optimiser import UnrolledOptimiser
from metarl.few_shot.quadratics import QUADRATIC, Quadratics

PAPER = {"num_tasks": 128, "iterations": 4_000, "record_every": 10, "checkpoint_every": 100, "evaluate_every": 1_000}
# Of 0.001, 0.003, ... 0.3 and 1 these are the best on 128 validation functions, by f after 100 steps.
TUNED = {"sgd": 0.01, "momentum": 0.01, "rmsprop": 0.03, "adam": 0.3}


@dataclass(frozen=True)
class LearnedSettings(BuildsMethod):
    """An LSTM that updates every coordinate."""

    inner_steps: int = same_as(UnrolledOptimiser, "total_steps")
    unroll: int = same_as(UnrolledOptimiser, "unroll")
    hidden: int = setting(20, "units of each layer of the LSTM", at_least=1, source="paper", flag="lstm_units")
    layers: int = setting(2, "layers of the LSTM", at_least=1, source="paper", flag="lstm_layers")
    log_scale: float = setting(
        0.0, "p of the preprocessing of gradients by logarithm and sign; 0 for none", at_least=0, source="paper's code"
    )
    output_scale: float = setting(1.0, "factor of the LSTM's outputs", more_than=0, source="paper's code")

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, criterion: Criterion, module: nn.Module, make: MakeModule) -> UnrolledOptimiser:
        """As of any method that is built so."""
        lstm = CoordinateLSTM(self.hidden, self.layers, self.log_scale, self.output_scale)
        return LearnedOptimiser(module, criterion, self.inner_steps, self.unroll, optimiser=lstm)


@dataclass(frozen=True)
class UsualSettings(BuildsMethod):
    """A usual optimiser; training learns its step size."""

    algorithm: ClassVar[str]

    inner_steps: int = same_as(UnrolledOptimiser, "total_steps")
    unroll: int = same_as(UnrolledOptimiser, "unroll")
    step_size: float = same_as(TunedOptimiser, "step_size", default=0.01)

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, criterion: Criterion, module: nn.Module, make: MakeModule) -> UnrolledOptimiser:
        """As of any method that is built so."""
        own: dict[str, Any] = {"algorithm": self.algorithm, "step_size": self.step_size}
        return TunedOptimiser(module, criterion, self.inner_steps, self.unroll, **own)


@dataclass(frozen=True)
class SGDSettings(UsualSettings):
    """Gradient descent."""

    algorithm: ClassVar[str] = "sgd"


@dataclass(frozen=True)
class MomentumSettings(UsualSettings):
    """Nesterov's momentum."""

    algorithm: ClassVar[str] = "momentum"


@dataclass(frozen=True)
class RMSpropSettings(UsualSettings):
    """RMSprop."""

    algorithm: ClassVar[str] = "rmsprop"


@dataclass(frozen=True)
class AdamSettings(UsualSettings):
    """Adam."""

    algorithm: ClassVar[str] = "adam"


@dataclass(frozen=True)
class OptimiserEvaluation(FewShotEvaluationSettings):
    """How an optimiser is evaluated: by f over its number of rows after each step."""

    num_tasks: int = same_as(FewShotEvaluationSettings, "num_tasks", default=128)
    inner_steps: int = same_as(FewShotEvaluationSettings, "inner_steps", default=100)


@dataclass(frozen=True)
class OptimiserSettings(FewShotSettings):
    """The settings of a run."""

    run: FewShotRun = part(FewShotRun, RUN)
    episodes: Episodes = part(Episodes, "sampling")
    method: LearnedSettings | UsualSettings = variants(  # type: ignore[assignment]
        "method",
        "the optimiser: an LSTM, or a usual one whose step size is learned",
        {
            "lstm": LearnedSettings,
            "sgd": SGDSettings,
            "momentum": MomentumSettings,
            "rmsprop": RMSpropSettings,
            "adam": AdamSettings,
        },
        "inner loop",
    )
    evaluation: OptimiserEvaluation = part(OptimiserEvaluation, EVALUATION)


RECIPES: Mapping[str, Recipe] = {  # published: f / 10 after 100 steps, read off figure 4
    "lstm": Recipe(PAPER, (0.037,)),
    "sgd": Recipe({"method": "sgd", "iterations": 0, "optimiser_step_size": TUNED["sgd"]}, (0.21,)),
    "momentum": Recipe({"method": "momentum", "iterations": 0, "optimiser_step_size": TUNED["momentum"]}, (0.080,)),
    "rmsprop": Recipe({"method": "rmsprop", "iterations": 0, "optimiser_step_size": TUNED["rmsprop"]}, (0.058,)),
    "adam": Recipe({"method": "adam", "iterations": 0, "optimiser_step_size": TUNED["adam"]}, (0.051,)),
}


def quadratics(settings: OptimiserSettings, of: Any) -> Quadratics:
    """The functions, of training and evaluations alike."""
    return Quadratics()


def coordinates(settings: OptimiserSettings, training: Quadratics) -> nn.Module:
    """A linear layer whose weights are the 10 coordinates, at first 0."""
    layer = nn.Linear(training.size, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def draw_curves(evaluation: FewShotEvaluation) -> dict[str, Any]:
    """The mean of f over its number of rows after each step, beside those of the tuned usual optimisers."""
    from matplotlib.figure import Figure

    learner = evaluation.learner
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    steps = len(evaluation.mean) - 1
    for name, size in TUNED.items():
        axes.plot(usual_curve(learner, evaluation.tasks, name, size, steps), linewidth=1, label=f"{name}, {size:g}")
    own = learner.metric(evaluation.tasks, steps).mean(dim=1).cpu()
    axes.plot(own, color="black", label="this run")
    tasks = len(evaluation.tasks)
    axes.set(xlabel="step", ylabel="f / 10", yscale="log", title=f"mean of {tasks} test functions")
    axes.legend(fontsize=8)
    return {"curves": figure}


def usual_curve(learner: FewShotLearner, tasks: Any, name: str, step_size: float, steps: int) -> torch.Tensor:
    """The mean metric of a usual optimiser after 0 ... S steps on the same functions from the same points, (S + 1,)."""
    method = TunedOptimiser(learner.method.module, QUADRATIC, algorithm=name, step_size=step_size)
    usual = FewShotLearner(learner.task_distribution, method, device=learner.device)
    return usual.metric(tasks, steps).mean(dim=1).cpu()


EXPERIMENT = FewShotExperiment(
    "optimiser",
    "Meta-train an LSTM to minimise random quadratic functions, coordinate by coordinate.",
    OptimiserSettings,
    RECIPES,
    paper_recipe="lstm",
    criterion=QUADRATIC,
    training_tasks=quadratics,
    evaluation_tasks=quadratics,
    network=coordinates,
    draw=draw_curves,
)

if __name__ == "__main__":
    main(EXPERIMENT)
