"""Meta-train a humanoid to run in a direction of the plane, by default with the recommended recipe."""

from metarl.experiments.runner.locomotion import PAPER, PEERS, locomotion_experiment
from metarl.experiments.runner.recipes import RECOMMENDED, Recipe, memory, recommended
from metarl.experiments.runner.training import main

RECIPES = {
    "maml": Recipe({**PAPER, **PEERS}, note="settings of the MAML paper, which has no humanoid"),
    RECOMMENDED: recommended(5, 2000, second_order=False),
    "rl2": memory(200, 2000),
}
EXPERIMENT = locomotion_experiment(
    "humanoid_direction",
    "Meta-train a humanoid to run in a direction that only the reward tells.",
    "HumanoidDirection",
    RECIPES,
)

if __name__ == "__main__":
    main(EXPERIMENT)
