"""Pictures of methods on curves: the fit with its band, and the units that an MT-net moves."""

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarl.experiments.runner.plots import panels
from metarl.few_shot.evaluation import FewShotEvaluation
from metarl.few_shot.methods.subspaces import mask_probabilities
from metarl.few_shot.predictive import Mixture
from metarl.few_shot.tasks import Examples


def draw_curves(evaluation: FewShotEvaluation) -> dict[str, Any]:
    """Four curves with their support points and the fit before and after adaptation, as in the paper's figure 2.

    Where the criterion knows the noise of targets there is a band of two standard deviations about the mean, after as
    many steps as training takes, with the outputs of up to ten components of the predictive distribution.
    """
    learner, shown = evaluation.learner, evaluation.tasks.of_tasks(slice(0, 4))
    steps = len(evaluation.mean) - 1
    figure, all_axes = panels(len(shown))
    states = learner.adapt(shown.support, steps)
    order = shown.query.inputs[:, :, :1].argsort(dim=1)
    query = Examples(*(torch.take_along_dim(of, order, dim=1) for of in (shown.query.inputs, shown.query.targets)))
    fits = {
        step: learner.predict(states[step], query.inputs)[:, :, 0].cpu() for step in sorted({0, min(1, steps), steps})
    }
    judged = min(max(1, learner.method.inner_steps), steps)
    noisy = learner.method.criterion.noise_std is not None
    mixture = learner.predictive(states[judged], query.inputs) if noisy else None
    for task, axes in enumerate(all_axes):
        x = query.inputs[task, :, 0].cpu()
        if mixture is not None:
            _draw_band(axes, x, mixture, task)
        axes.plot(x, query.targets[task, :, 0].cpu(), color="tab:red", label="truth")
        for (step, fit), style in zip(fits.items(), (":", "--", "-"), strict=False):
            axes.plot(x, fit[task], style, color="tab:green", label=f"{step} step{'s' * (step != 1)}")
        axes.set_title(f"test curve {task}, K = {len(shown.support.targets[task])}", fontsize=9)
        points = (of[task, :, 0].cpu() for of in (shown.support.inputs, shown.support.targets))
        axes.plot(*points, "^", color="tab:purple", label="support")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return {"curves": figure, **draw_masks(evaluation)}


def draw_masks(evaluation: FewShotEvaluation) -> dict[str, Any]:
    """The probability of each unit of an MT-net to be moved by inner steps, in order; nothing of other methods."""
    found = mask_probabilities(evaluation.learner.theta)
    if not found:
        return {}
    figure = Figure(figsize=(3.2 * len(found), 2.8), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for (layer, probability), axes in zip(found.items(), panels, strict=True):
        ordered = probability.sort(descending=True).values.cpu().numpy()
        axes.bar(range(len(ordered)), ordered, width=1.0, color="tab:blue")
        axes.set(title=f"{layer}: {ordered.mean():.2f} on average", xlabel="unit", ylim=(0, 1))
    panels[0].set_ylabel("probability to move")
    return {"masks": figure}


def _draw_band(axes: Axes, x: torch.Tensor, mixture: Mixture, task: int) -> None:
    mean, std = (of[task, :, 0].cpu() for of in (mixture.mean, mixture.std))
    axes.fill_between(x, mean - 2 * std, mean + 2 * std, color="tab:green", alpha=0.15, linewidth=0)
    for component in mixture.means[task, :10, :, 0].cpu() if mixture.means.shape[1] > 1 else ():
        axes.plot(x, component, color="tab:green", alpha=0.35, linewidth=0.6)
