"""Meta-train on sine curves, by default with the paper's settings."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure

import metarl
from metarl.experiments.runner.configuration import setting, with_default
from metarl.experiments.runner.few_shot import (
    LEARNERS,
    FewShotEvaluation,
    FewShotExperiment,
    FewShotSettings,
    build_few_shot,
)
from metarl.experiments.runner.settings import Settings
from metarl.experiments.runner.training import main
from metarl.few_shot.networks import MLP
from metarl.few_shot.tasks import Examples


@dataclass(frozen=True)
class SineSettings(FewShotSettings):
    """Meta-train a network to fit a sine curve from a few of its points."""

    iterations: int = with_default(FewShotSettings, "iterations", 70_000, "paper's code")
    learner: str = setting(
        "maml",
        "how it meta-learns; pretrained fits all curves at once, oracle also sees amplitude and phase",
        choices=(*LEARNERS, "pretrained", "oracle"),
        source="paper",
    )
    shots: int = with_default(FewShotSettings, "shots", 10, "paper")
    hidden_sizes: tuple[int, ...] = with_default(Settings, "hidden_sizes", (40, 40), "paper")
    record_every: int = with_default(FewShotSettings, "record_every", 100, "")
    checkpoint_every: int = with_default(FewShotSettings, "checkpoint_every", 1000, "")
    evaluate_every: int = with_default(FewShotSettings, "evaluate_every", 5000, "")
    evaluation_shots: int = with_default(FewShotSettings, "evaluation_shots", 5, "paper")


def tasks(settings: SineSettings, learner: Any, shots: int) -> metarl.Sine:
    """The curves of evaluations, with 100 points to judge by."""
    return metarl.Sine(shots, 100, oracle=settings.learner == "oracle")


def build(settings: SineSettings) -> metarl.FewShotLearner:
    """The learner on sine curves; pretrained and oracle learn without an inner step and take some in evaluation."""
    oracle = settings.learner == "oracle"
    if oracle or settings.learner == "pretrained":
        settings = replace(settings, inner_steps=0)
    curves = metarl.Sine(settings.shots, settings.training_queries, oracle)
    sizes = (3 if oracle else 1, *settings.hidden_sizes, 1)
    return build_few_shot(settings, curves, lambda: MLP(sizes), metarl.REGRESSION)


def curves(evaluation: FewShotEvaluation) -> dict[str, Figure]:
    """Four curves with their support points and the fit before and after adaptation, as in the paper's figure 2."""
    learner, shown = evaluation.learner, evaluation.tasks.of_tasks(slice(0, 4))
    steps = len(evaluation.mean) - 1
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    panels = figure.subplots(1, 4, squeeze=False, sharex=True)[0]
    path = learner.adapt(shown.support, steps)
    order = shown.query.inputs[:, :, :1].argsort(dim=1)
    query = Examples(*(torch.take_along_dim(of, order, dim=1) for of in (shown.query.inputs, shown.query.targets)))
    fits = {
        step: learner.predict(path[step], query.inputs)[:, :, 0].cpu() for step in sorted({0, min(1, steps), steps})
    }
    for task, axes in enumerate(panels[: len(shown)]):
        x = query.inputs[task, :, 0].cpu()
        axes.plot(x, query.targets[task, :, 0].cpu(), color="tab:red", label="truth")
        for (step, fit), style in zip(fits.items(), (":", "--", "-"), strict=False):
            axes.plot(x, fit[task], style, color="tab:green", label=f"{step} step{'s' * (step != 1)}")
        axes.set(xlabel="x", title=f"test curve {task}, K = {len(shown.support.targets[task])}")
        points = (of[task, :, 0].cpu() for of in (shown.support.inputs, shown.support.targets))
        axes.plot(*points, "^", color="tab:purple", label="support")
    panels[0].set_ylabel("y")
    panels[0].legend(fontsize=7)
    return {"curves": figure}


EXPERIMENT = FewShotExperiment("sine", SineSettings, build, curves, tasks)

if __name__ == "__main__":
    main(EXPERIMENT)
