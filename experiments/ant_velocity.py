"""Meta-train an ant to run at a velocity, by default with the recommended recipe."""

from metarl.experiments.runner.locomotion import PAPER, locomotion_experiment
from metarl.experiments.runner.recipes import (
    ORACLE,
    RECOMMENDED,
    SHORT_COMPARISON,
    SMALL,
    Recipe,
    pretrained,
    recommended,
    schedule,
    small_batches,
    untrained,
)
from metarl.experiments.runner.training import main

RECIPES = {
    "maml": Recipe(
        {**PAPER, "iterations": 375}, (30.58, 96.74, 100.06, 101.41), "iterations of the paper's published result"
    ),
    "pretrained": pretrained(0.2, (-1.83, 6.11, 8.48, 9.47)),
    "random": untrained(1.0, (-78.64, -62.81, -48.55, -35.57)),
    "oracle": Recipe(ORACLE, (107.89,)),
    **SHORT_COMPARISON,
    SMALL: small_batches(20, 750),
    f"{SMALL}, survival bonus": small_batches(20, 750, survival_bonus=2.0, **schedule({252: 0.06})),
    RECOMMENDED: recommended(5, 1500, second_order=False, survival_bonus=2.0),
}
EXPERIMENT = locomotion_experiment(
    "ant_velocity", "Meta-train an ant to run at a velocity that only the reward tells.", "AntVelocity", RECIPES
)

if __name__ == "__main__":
    main(EXPERIMENT)
