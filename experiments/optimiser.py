"""Meta-train an optimiser of random quadratics: `python experiments/optimiser.py`, by default the paper's LSTM.

`--functions classifiers` minimises the losses of small classifiers of handwritten characters instead: each function has
ten characters of its own, those of test functions held out. The paper has MNIST's digits, which are no part of this
project; characters are read as by `omniglot.py`, are as large, and let test functions differ from those of training.
"""

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
from metarl.experiments.runner.few_shot_images import ImageFiles
from metarl.experiments.runner.recipes import Recipe
from metarl.experiments.runner.settings import EVALUATION, RUN, part, same_as, variants
from metarl.experiments.runner.training import main
from metarl.few_shot.classifier_functions import CLASSIFIER_LOSS, ClassifierFunctions
from metarl.few_shot.criteria import Criterion
from metarl.few_shot.evaluation import FewShotEvaluation
from metarl.few_shot.images.image_sets import omniglot
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.methods.learned_optimisers import CoordinateLSTM, LearnedOptimiser, TunedOptimiser
from metarl.few_shot.methods.unrolled_optimiser import UnrolledOptimiser
from metarl.few_shot.quadratics import QUADRATIC, Quadratics

PAPER = {"num_tasks": 128, "iterations": 4_000, "record_every": 10, "checkpoint_every": 100, "evaluate_every": 1_000}
# Of 0.001, 0.003, ... 10 and 30 these step sizes are the best on 128 validation quadratics, and on 16 validation
# classifiers, by f after 100 steps.
TUNED = {
    "quadratics": {"sgd": 0.01, "momentum": 0.01, "rmsprop": 0.03, "adam": 0.3},
    "classifiers": {"sgd": 10.0, "momentum": 3.0, "rmsprop": 0.03, "adam": 0.1},
}
CLASSIFIERS = {"functions": "classifiers", "num_tasks": 2, "evaluation_tasks": 32}
LSTM_OF_CLASSIFIERS = {**CLASSIFIERS, "iterations": 1_500, "log_scale": 10.0, "output_scale": 0.1}
LSTM_OF_CLASSIFIERS |= {"evaluate_every": 250, "final_learning_rate": 1e-5}


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
class QuadraticFunctions:
    """Quadratics of 10 coordinates."""


@dataclass(frozen=True)
class CharacterFunctions(ImageFiles):
    """Losses of classifiers of ten handwritten characters, with one hidden layer of sigmoid units."""

    data: str = same_as(
        ImageFiles,
        "data",
        help="folder of Omniglot's images_background.zip and images_evaluation.zip; none downloads them",
    )
    pixels: int = setting(10, "height and width to which characters are averaged", at_least=1, at_most=28)
    hidden_units: int = setting(20, "sigmoid units of the hidden layer", at_least=1, source="paper")

    def __post_init__(self) -> None:
        check_settings(self)


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
    functions: QuadraticFunctions | CharacterFunctions = variants(
        "functions",
        "the functions that are minimised: random quadratics, or losses of small classifiers of characters",
        {"quadratics": QuadraticFunctions, "classifiers": CharacterFunctions},
        "functions",
    )
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


def usual_recipes(functions: str, published: Mapping[str, tuple[float, ...]]) -> dict[str, Recipe]:
    """The recipes of the usual optimisers, with tuned step sizes and without training."""
    found = {}
    for name, size in TUNED[functions].items():
        settings: dict[str, Any] = {"method": name, "iterations": 0, "optimiser_step_size": size}
        if functions == "quadratics":
            found[name] = Recipe(settings, published[name])
        else:
            found[f"{name}, {functions}"] = Recipe({**CLASSIFIERS, **settings}, published.get(name, ()))
    return found


RECIPES: Mapping[str, Recipe] = {  # published: f / 10 after 100 steps, read off figure 4
    "lstm": Recipe(PAPER, (0.037,)),
    **usual_recipes("quadratics", {"sgd": (0.21,), "momentum": (0.080,), "rmsprop": (0.058,), "adam": (0.051,)}),
    "lstm, classifiers": Recipe(LSTM_OF_CLASSIFIERS, (), "on MNIST the paper's figure shows 0.24 after 100 steps"),
    **usual_recipes("classifiers", {}),
}


def functions(settings: OptimiserSettings, device: str) -> Quadratics | ClassifierFunctions:
    """The functions of training."""
    chosen = settings.functions
    if isinstance(chosen, QuadraticFunctions):
        return Quadratics()
    images = omniglot(chosen.folder, chosen.prepared)
    return ClassifierFunctions({split: of.to(device) for split, of in images.items()}, pixels=chosen.pixels)


def same_functions(settings: OptimiserSettings, training: Any) -> Any:
    """The functions of evaluations, which are drawn from other characters as the split says."""
    return training


def optimisee(settings: OptimiserSettings, training: Quadratics | ClassifierFunctions) -> nn.Module:
    """The module whose parameters are the coordinates, all at first 0, to which the method adds noise."""
    if isinstance(training, Quadratics):
        module: nn.Module = nn.Linear(training.size, 1, bias=False)
    else:
        units: int = settings.functions.hidden_units  # type: ignore[union-attr]
        module = nn.Sequential(nn.Linear(training.size, units), nn.Sigmoid(), nn.Linear(units, training.ways))
    for value in module.parameters():
        nn.init.zeros_(value)
    return module


def draw_curves(evaluation: FewShotEvaluation) -> dict[str, Any]:
    """The mean metric after each step, beside those of the tuned usual optimisers."""
    from matplotlib.figure import Figure

    learner = evaluation.learner
    quadratic = isinstance(learner.task_distribution, Quadratics)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    steps = len(evaluation.mean) - 1
    for name, size in TUNED["quadratics" if quadratic else "classifiers"].items():
        axes.plot(usual_curve(learner, evaluation.tasks, name, size, steps), linewidth=1, label=f"{name}, {size:g}")
    own = learner.metric(evaluation.tasks, steps).mean(dim=1).cpu()
    axes.plot(own, color="black", label="this run")
    label, tasks = "f / 10" if quadratic else "cross-entropy", len(evaluation.tasks)
    axes.set(xlabel="step", ylabel=label, yscale="log", title=f"mean of {tasks} test functions")
    axes.legend(fontsize=8)
    return {"curves": figure}


def usual_curve(learner: FewShotLearner, tasks: Any, name: str, step_size: float, steps: int) -> torch.Tensor:
    """The mean metric of a usual optimiser after 0 ... S steps on the same functions from the same points, (S + 1,)."""
    module, criterion = learner.method.module, learner.method.criterion
    method = TunedOptimiser(module, criterion, algorithm=name, step_size=step_size)
    usual = FewShotLearner(learner.task_distribution, method, device=learner.device)
    return usual.metric(tasks, steps).mean(dim=1).cpu()


class OptimiserExperiment(FewShotExperiment):
    """The experiment on learned optimisers, whose criterion is that of the functions."""

    def criterion_of(self, settings: Any) -> Criterion:
        """As of any few-shot experiment."""
        return self.criterion if isinstance(settings.functions, QuadraticFunctions) else CLASSIFIER_LOSS


EXPERIMENT = OptimiserExperiment(
    "optimiser",
    "Meta-train an LSTM to minimise functions, coordinate by coordinate.",
    OptimiserSettings,
    RECIPES,
    paper_recipe="lstm",
    criterion=QUADRATIC,
    training_tasks=functions,
    evaluation_tasks=same_functions,
    network=optimisee,
    draw=draw_curves,
)

if __name__ == "__main__":
    main(EXPERIMENT)
