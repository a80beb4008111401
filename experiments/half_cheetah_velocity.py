"""Meta-train a half-cheetah to run at a velocity, by default with the recommended recipe."""

from metarl.experiments.runner.locomotion import PAPER, locomotion_experiment
from metarl.experiments.runner.recipes import (
    GAE,
    ORACLE,
    SHORT_COMPARISON,
    SMALL,
    Recipe,
    for_all_dynamics,
    memory,
    pretrained,
    quadratic,
    recommended,
    schedule,
    small_batches,
    untrained,
)
from metarl.experiments.runner.training import main

SHORTER = {"inner_step_size": 0.03, **schedule({600: 0.02, 900: 0.01})}
RECIPES = {
    "maml": Recipe(
        {**PAPER, "iterations": 475, "episodes_per_task": 10},
        (-129.53, -78.57, -66.62, -60.78),
        "iterations of the paper's published result; episodes of its code",
    ),
    "pretrained": pretrained(0.02, (-158.00, -135.39, -128.47, -133.61)),
    "random": untrained(0.1, (-254.83, -254.33, -246.79, -230.83)),
    "oracle": Recipe(ORACLE, (-54.47,)),
    **SHORT_COMPARISON,
    **quadratic(GAE),
    SMALL: small_batches(20, 950, extra_step_scale=0.3),
    f"{SMALL}, shorter inner steps": small_batches(10, 1900, **SHORTER),
    f"{SMALL}, shorter inner steps, longer": small_batches(10, 2850, **SHORTER),
    **for_all_dynamics(recommended(10, 950, second_order=False, baseline="quadratic")),
    **for_all_dynamics(memory(200, 950), "rl2"),
}
EXPERIMENT = locomotion_experiment(
    "half_cheetah_velocity",
    "Meta-train a half-cheetah to run at a velocity that only the reward tells.",
    "HalfCheetahVelocity",
    RECIPES,
)

if __name__ == "__main__":
    main(EXPERIMENT)
