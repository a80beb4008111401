"""Meta-train on 2D navigation, by default with the paper's settings."""

from dataclasses import dataclass

from matplotlib.figure import Figure

import metarl
from metarl.envs import Navigation2D
from metarl.experiments.runner.configuration import with_default
from metarl.experiments.runner.experiment import Experiment
from metarl.experiments.runner.settings import Settings, build_learner
from metarl.experiments.runner.training import main
from metarl.rl.evaluation import Evaluation


@dataclass(frozen=True)
class NavigationSettings(Settings):
    """Meta-train a policy with MAML-TRPO to reach goals in the plane that it cannot see."""

    inner_step_size: float = with_default(Settings, "inner_step_size", 0.5, "paper's code; its text has 0.1")


def build(settings: NavigationSettings) -> metarl.Learner:
    """The learner on 2D navigation."""
    return build_learner(settings, Navigation2D(settings.horizon))


def paths(evaluation: Evaluation) -> dict[str, Figure]:
    """Paths of four test tasks before and after adaptation, as in the paper's figure 4."""
    count = min(4, len(evaluation.stages[0].episodes.valid))
    figure = Figure(figsize=(3 * count, 3.2), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False, sharex=True, sharey=True)[0]
    chosen = {"before": evaluation.stages[0], f"after {len(evaluation.stages) - 1} steps": evaluation.stages[-1]}
    for task, axes in enumerate(panels):
        for (label, stage), color in zip(chosen.items(), ("0.6", "tab:green"), strict=True):
            for episode in range(min(3, stage.episodes.valid.shape[2])):
                path = stage.episodes.observations[task, stage.episodes.valid[task, :, episode], episode].cpu()
                axes.plot(path[:, 0], path[:, 1], color=color, linewidth=1, label=label if episode == 0 else None)
        axes.plot(*evaluation.tasks["goal"][task], marker="*", markersize=12, color="tab:red", label="goal")
        axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), aspect="equal")
        axes.set(xlabel="x")
    panels[0].set(ylabel="y")
    panels[0].legend(fontsize=7, loc="upper left")
    figure.suptitle("paths in the plane, three episodes of each test task")
    return {"paths": figure}


EXPERIMENT = Experiment("navigation_2d", NavigationSettings, build, paths)

if __name__ == "__main__":
    main(EXPERIMENT)
