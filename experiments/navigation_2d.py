"""Meta-train on 2D navigation: `python experiments/navigation_2d.py`, by default with the recommended recipe."""

from typing import Any

from metarl.experiments.runner.recipes import (
    COMPARISON,
    CONTEXT,
    ORACLE,
    RECOMMENDED,
    Recipe,
    memory,
    pretrained,
    recommended,
    untrained,
)
from metarl.experiments.runner.reinforcement import ReinforcementExperiment, ReinforcementSettings
from metarl.experiments.runner.training import main
from metarl.rl.task_distribution import TaskDistribution

# Extra-step scales, of these recipes as of others, are the best on other tasks than the test tasks.
SMALL_BATCHES = {"estimator": "lvc", "gae_lambda": 0.95, "num_tasks": 5, "evaluate_every": 100, "inner_step_size": 0.1}
RECIPES = {
    "maml": Recipe(
        {"inner_step_size": 0.5}, (-40.41, -11.68, -3.33, -3.23), "step size of the paper's code; its text has 0.1"
    ),
    "pretrained": pretrained(0.5, (-40.81, -19.73, -11.72, -8.48), outer="adam"),
    "random": untrained(0.5, (-82.66, -57.96, -53.84, -46.81)),
    "oracle": Recipe(ORACLE, (-2.29,)),
    "context vector": Recipe(CONTEXT, (-42.42, -13.90, -5.17, -3.18)),
    "maml, later factor 0.3": Recipe({"extra_step_scale": 0.3}),
    "lvc, small batches": Recipe({**SMALL_BATCHES, "iterations": 400, "extra_step_scale": 0.4}),
    "lvc, small batches, multi-step": Recipe(
        {
            **SMALL_BATCHES,
            "iterations": 260,
            "inner_steps": 3,
            "adaptation": "layer-step-sizes",
            "multi_step": True,
        }
    ),
    **COMPARISON,
    RECOMMENDED: recommended(5, 100, estimator="lvc", baseline="quadratic"),
    "rl2": memory(200, 200),
}


def tasks(settings: ReinforcementSettings) -> TaskDistribution:
    """Goals in the plane."""
    from metarl.envs import Navigation2D  # imported when a run starts: the package imports the simulators

    return Navigation2D(settings.environment.horizon)


def draw_paths(evaluation: Any) -> dict[str, Any]:
    """Paths of four test tasks before and after adaptation, as in the paper's figure 4."""
    from metarl.experiments.runner.plots import panels  # which imports matplotlib

    first, last = evaluation.path[0], evaluation.path[-1]
    figure, all_axes = panels(len(first.episodes.valid))
    shown = {"before": (first, "0.6"), f"after {len(evaluation.path) - 1} {evaluation.step_name}": (last, "tab:green")}
    for task, axes in enumerate(all_axes):
        for label, (adapted, color) in shown.items():
            episodes = adapted.episodes
            for episode in range(min(3, episodes.valid.shape[2])):
                path = episodes.observations[task, episodes.valid[task, :, episode], episode].cpu()
                axes.plot(path[:, 0], path[:, 1], color=color, linewidth=1, label=label if episode == 0 else None)
        axes.plot(*evaluation.tasks["goal"][task], marker="*", markersize=12, color="tab:red", label="goal")
        axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), aspect="equal")
        axes.set_title(f"test task {task}", fontsize=9)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle("paths in the plane, three episodes each", fontsize=10)
    return {"paths": figure}


EXPERIMENT = ReinforcementExperiment(
    "navigation_2d",
    "Meta-train a policy to reach goals in the plane that it cannot see.",
    recipes=RECIPES,
    task_distribution=tasks,
    draw=draw_paths,
)

if __name__ == "__main__":
    main(EXPERIMENT)
