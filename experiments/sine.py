"""Meta-train on sine curves: `python experiments/sine.py`, by default with the paper's settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from metarl.core.rules import GradientDescent
from metarl.core.settings import SettingError, check_settings, setting
from metarl.experiments.runner.curve_methods import CURVE_METHODS, CurveMethod, with_noise
from metarl.experiments.runner.curve_plots import draw_curves
from metarl.experiments.runner.few_shot import FewShotExperiment, FewShotSettings, FineTuned, methods
from metarl.experiments.runner.recipes import Recipe
from metarl.experiments.runner.settings import part
from metarl.experiments.runner.training import main
from metarl.few_shot.criteria import REGRESSION, Criterion
from metarl.few_shot.curves import Curves, FixedTasks
from metarl.few_shot.methods.subspaces import TransformedMLP
from metarl.few_shot.networks import MLP
from metarl.few_shot.tasks import FewShotDistribution, Sine

SHOTS = {
    "": {"evaluation_shots": 5},
    "shots_10/": {"evaluation_shots": 10},
    "shots_20/": {"evaluation_shots": 20},
}
PAPER = {
    "iterations": 70_000,
    "shots": 10,
    "inner_step_size": 0.01,
    "extra_step_scale": 1.0,
    "evaluation_shots": 5,
    "record_every": 100,
    "checkpoint_every": 1_000,
    "evaluate_every": 5_000,
}
FAMILIES: dict[str, Mapping[str, Any]] = {  # of curves, by the settings of `Curves`
    "frequency": {"frequency": (0.8, 1.2)},
    "wide": {"frequency": (0.5, 2.0), "phase": (0.0, 2 * np.pi), "relative_noise": 0.01},
    "sines-and-lines": {"families": ("sine", "line"), "amplitude": (1.0, 5.0), "noise_std": 0.3},
    "half": {"support_x": (-5.0, 0.0)},
    "constants": {"families": ("polynomial",), "order": 0, "x": (-2.0, 2.0)},
    "linear": {"families": ("polynomial",), "order": 1, "x": (-2.0, 2.0)},
    "quadratic": {"families": ("polynomial",), "order": 2, "x": (-2.0, 2.0)},
}
# Published is the mean squared error with 5 shots after 1, 5 and 10 gradient steps, read off the paper's figure 3.


def further_recipes() -> dict[str, Recipe]:
    """The recipes of methods beyond gradient descent, each beside MAML on the same curves.

    Published of T-nets and MT-nets is the error after one step, with 5 points. Deviations: Bayesian MAML is trained for
    20,000 iterations in place of 100,000, with a cosine in place of steps of 0.98; PLATIPUS is trained from the start,
    in place of a trained MAML, with networks of 40 units in place of 100, and without the context that it also learns.
    """
    frequency = {"curves": "frequency", "num_tasks": 4, "iterations": 60_000, "evaluation_steps": 1}
    wide = {"curves": "wide", "training_curves": 100, "num_tasks": 10, "shots": 5, "hidden_sizes": (40, 40, 40)}
    wide |= {"inner_step_size": 0.001, "iterations": 20_000, "final_learning_rate": 1e-4, "noise_std": 0.3}
    mixed = {"curves": "sines-and-lines", "shots": 5, "noise_std": 0.3, "iterations": 20_000}
    mixed |= {"hidden_sizes": (40, 40, 40), "inner_steps": 5, "inner_step_size": 0.001, "evaluation_steps": 5}
    mixed |= {"num_tasks": 10}
    half = {"curves": "half", "noise_std": 0.3, "iterations": 20_000, "evaluation_shots": 10, "evaluation_steps": 1}
    groups: list[tuple[str, dict[str, Any], dict[str, tuple[float, ...]]]] = [
        ("frequencies", frequency, {"maml": (1.07,), "t-net": (0.83,), "mt-net": (0.76,)}),
        ("100 curves", {**wide, "evaluation_steps": 5}, dict.fromkeys(("maml", "emaml", "bmaml"), ())),
        ("sines and lines", mixed, dict.fromkeys(("maml", "platipus"), ())),
        ("half the range", half, dict.fromkeys(("maml", "llama"), ())),
    ]
    for order in ("constants", "linear", "quadratic"):  # of which an MT-net moves more and more units
        groups.append((order, {"curves": order, "num_tasks": 4, "iterations": 20_000}, {"mt-net": ()}))
    found = {}
    for where, settings, published in groups:
        for name, values in published.items():
            evaluations = SHOTS if where == "frequencies" else {"": {}}
            found[f"{name}, {where}"] = Recipe({**settings, "method": name}, values, evaluations=evaluations)
    return found


RECIPES = {
    "maml": Recipe(PAPER, (0.67, 0.38, 0.35), evaluations=SHOTS),
    "maml, later factor 0.5": Recipe(
        {"extra_step_scale": 0.5},
        (0.67, 0.38, 0.35),
        "the same runs, evaluated with shorter steps after the first, which were chosen on validation curves",
        SHOTS,
    ),
    "pretrained": Recipe({"method": "pretrained"}, (2.41, 2.23, 2.19), evaluations=SHOTS),
    "oracle": Recipe({"method": "oracle", "evaluation_steps": 0}, evaluations=SHOTS),
    **further_recipes(),
}


class Pretrained(FineTuned):
    """One network for all curves, fine-tuned on a task."""


class Oracle(FineTuned):
    """One network that sees amplitude and phase."""


@dataclass(frozen=True)
class NetworkSettings:
    """A network with one hidden layer or more."""

    hidden_sizes: tuple[int, ...] = setting((40, 40), "widths of the hidden layers", at_least=1)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class CurveSettings:
    """Which curves are learned."""

    family: str = setting(
        "paper",
        "curves: sines of one frequency, or of several, or of noise and any phase; sines and lines; sines seen on one "
        "half; polynomials",
        choices=("paper", *FAMILIES),
        flag="curves",
    )
    training_curves: int = setting(0, "training curves in all, their points fixed; 0 for new ones", at_least=0)
    noise_std: float | None = setting(
        None,
        "standard deviation of targets that predictive distributions assume; none for no distributions",
        more_than=0,
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class SineSettings(FewShotSettings):
    """The settings of a run on sine curves."""

    method: GradientDescent = methods(
        "anil adapts the last layer alone; pretrained fits all curves at once, oracle also sees amplitude and phase",
        pretrained=Pretrained,
        oracle=Oracle,
        **CURVE_METHODS,
    )
    network: NetworkSettings = part(NetworkSettings, "network")
    curves: CurveSettings = part(CurveSettings, "data")

    def __post_init__(self) -> None:
        if self.oracle and self.curves.family != "paper":
            raise SettingError(f"--curves = {self.curves.family}; allowed with --method oracle: paper")
        if isinstance(self.method, CurveMethod) and self.method.needs_noise and self.curves.noise_std is None:
            raise SettingError("--noise-std = None; allowed with --method llama: more than 0")

    @property
    def oracle(self) -> bool:
        """Whether the network sees amplitude and phase."""
        return isinstance(self.method, Oracle)


@dataclass(frozen=True)
class SineExperiment(FewShotExperiment):
    """A few-shot experiment on curves."""

    def criterion_of(self, settings: Any) -> Criterion:
        """As of any few-shot experiment, with the noise of targets."""
        return with_noise(self.criterion, settings.curves.noise_std)


def curves(settings: SineSettings, shots: int, queries: int) -> FewShotDistribution:
    """Curves of the family that the settings name."""
    family = settings.curves.family
    if family == "paper":
        return Sine(shots, queries, settings.oracle)
    return Curves(shots, queries, **FAMILIES[family])


def training_tasks(settings: SineSettings, device: str) -> FewShotDistribution:
    """Curves with as many points as the settings say."""
    found = curves(settings, settings.episodes.shots, settings.episodes.training_queries)
    return FixedTasks(found, settings.curves.training_curves) if settings.curves.training_curves else found


def evaluation_tasks(settings: SineSettings, training: FewShotDistribution) -> FewShotDistribution:
    """The curves of evaluations, with 100 points to judge by."""
    return curves(settings, settings.judged_shots, 100)


def network(settings: SineSettings, training: FewShotDistribution) -> nn.Module:
    """The paper's network."""
    sizes = (3 if settings.oracle else 1, *settings.network.hidden_sizes, 1)
    transformed = isinstance(settings.method, CurveMethod) and settings.method.transformed
    return TransformedMLP(sizes) if transformed else MLP(sizes)


EXPERIMENT = SineExperiment(
    "sine",
    "Meta-train a network to fit a sine curve from a few of its points.",
    SineSettings,
    RECIPES,
    criterion=REGRESSION,
    training_tasks=training_tasks,
    evaluation_tasks=evaluation_tasks,
    network=network,
    draw=draw_curves,
)

if __name__ == "__main__":
    main(EXPERIMENT)
