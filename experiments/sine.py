"""Meta-train on sine curves: `python experiments/sine.py`, by default with the paper's settings."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from metarl.core.rules import GradientDescent
from metarl.core.settings import check_settings, setting
from metarl.experiments.runner.few_shot import FewShotExperiment, FewShotSettings, FineTuned, methods
from metarl.experiments.runner.recipes import Recipe
from metarl.experiments.runner.settings import part
from metarl.experiments.runner.training import main
from metarl.few_shot.criteria import REGRESSION
from metarl.few_shot.evaluation import FewShotEvaluation
from metarl.few_shot.networks import MLP
from metarl.few_shot.tasks import Examples, Sine

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
# Published is the mean squared error with 5 shots after 1, 5 and 10 gradient steps, read off the paper's figure 3.
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
class SineSettings(FewShotSettings):
    """The settings of a run on sine curves."""

    method: GradientDescent = methods(
        "anil adapts the last layer alone; pretrained fits all curves at once, oracle also sees amplitude and phase",
        pretrained=Pretrained,
        oracle=Oracle,
    )
    network: NetworkSettings = part(NetworkSettings, "network")

    @property
    def oracle(self) -> bool:
        """Whether the network sees amplitude and phase."""
        return isinstance(self.method, Oracle)


def training_tasks(settings: SineSettings, device: str) -> Sine:
    """Curves with as many points as the settings say."""
    return Sine(settings.episodes.shots, settings.episodes.training_queries, settings.oracle)


def evaluation_tasks(settings: SineSettings, training: Sine) -> Sine:
    """The curves of evaluations, with 100 points to judge by."""
    return Sine(settings.judged_shots, 100, settings.oracle)


def network(settings: SineSettings, training: Sine) -> nn.Module:
    """The paper's network."""
    return MLP((3 if settings.oracle else 1, *settings.network.hidden_sizes, 1))


def draw_curves(evaluation: FewShotEvaluation) -> dict[str, Any]:
    """Four curves with their support points and the fit before and after adaptation, as in the paper's figure 2."""
    from metarl.experiments.runner.plots import panels  # which imports matplotlib

    learner, shown = evaluation.learner, evaluation.tasks.of_tasks(slice(0, 4))
    steps = len(evaluation.mean) - 1
    figure, all_axes = panels(len(shown))
    states = learner.adapt(shown.support, steps)
    order = shown.query.inputs[:, :, :1].argsort(dim=1)
    query = Examples(*(torch.take_along_dim(of, order, dim=1) for of in (shown.query.inputs, shown.query.targets)))
    fits = {
        step: learner.predict(states[step], query.inputs)[:, :, 0].cpu() for step in sorted({0, min(1, steps), steps})
    }
    for task, axes in enumerate(all_axes):
        x = query.inputs[task, :, 0].cpu()
        axes.plot(x, query.targets[task, :, 0].cpu(), color="tab:red", label="truth")
        for (step, fit), style in zip(fits.items(), (":", "--", "-"), strict=False):
            axes.plot(x, fit[task], style, color="tab:green", label=f"{step} step{'s' * (step != 1)}")
        axes.set(title=f"test curve {task}, K = {len(shown.support.targets[task])}")
        points = (of[task, :, 0].cpu() for of in (shown.support.inputs, shown.support.targets))
        axes.plot(*points, "^", color="tab:purple", label="support")
    all_axes[0].legend(fontsize=8)
    return {"curves": figure}


EXPERIMENT = FewShotExperiment(
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
