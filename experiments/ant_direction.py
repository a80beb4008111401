"""Meta-train an ant to run forwards or backwards, by default with the recommended recipe."""

from metarl.experiments.runner.locomotion import PAPER, locomotion_experiment
from metarl.experiments.runner.recipes import (
    HALVED,
    ORACLE,
    PENALTY,
    SHORT_COMPARISON,
    SMALL,
    Recipe,
    for_all_dynamics,
    pretrained,
    recommended,
    schedule,
    small_batches,
    untrained,
)
from metarl.experiments.runner.training import main

TWO_TASKS = small_batches(2, 11500, survival_bonus=2.0, evaluate_every=1000)
RECIPES = {
    "maml": Recipe(
        {**PAPER, "iterations": 575, "episodes_per_task": 40, "evaluation_episodes": 40, "extra_step_scale": 0.01},
        (8.66, 499.15, 500.68, 499.11),
        "iterations of the paper's published result; extra-step scale of its code",
    ),
    "pretrained": pretrained(0.2, (3.16, 1.27, 6.51, 6.87), **HALVED),
    "random": untrained(1.0, (3.11, 9.25, 15.96, 26.12), **HALVED),
    "oracle": Recipe(ORACLE, (524.80,)),
    **SHORT_COMPARISON,
    SMALL: small_batches(8, 2875),
    f"{SMALL}, shorter inner steps": small_batches(8, 2875, **schedule({1964: 0.05, 2368: 0.035})),
    f"{SMALL}, two tasks": TWO_TASKS | schedule({300: 0.06, 417: 0.04, 530: 0.025, 1163: 0.015, 2500: 0.01}),
    f"{SMALL}, two tasks, bounds penalty": TWO_TASKS
    | {**PENALTY, **schedule({200: 0.06, 300: 0.04, 420: 0.03, 560: 0.02, 800: 0.015})},
    **for_all_dynamics(recommended(2, 1430, second_order=False, survival_bonus=2.0)),
}
EXPERIMENT = locomotion_experiment(
    "ant_direction",
    "Meta-train an ant to run forwards or backwards, whichever the reward asks for.",
    "AntDirection",
    RECIPES,
)

if __name__ == "__main__":
    main(EXPERIMENT)
