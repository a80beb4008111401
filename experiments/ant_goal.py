"""Meta-train an ant to run to a place, by default with the recommended recipe."""

from metarl.experiments.runner.locomotion import PAPER, locomotion_experiment
from metarl.experiments.runner.recipes import RECOMMENDED, Recipe, on_peers_bodies, recommended
from metarl.experiments.runner.training import main

RECIPES = {
    "maml": Recipe(
        {**PAPER, "iterations": 500}, note="as many iterations as the paper's longest; this task is in its code only"
    ),
    RECOMMENDED: recommended(5, 1500, second_order=False, survival_bonus=2.0),
    **on_peers_bodies(recommended(5, 1500, second_order=False)),  # in which no fall ends an episode
}
EXPERIMENT = locomotion_experiment(
    "ant_goal", "Meta-train an ant to run to a place that only the reward tells.", "AntGoal", RECIPES
)

if __name__ == "__main__":
    main(EXPERIMENT)
