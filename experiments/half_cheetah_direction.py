"""Meta-train a half-cheetah to run forwards or backwards, by default with the recommended recipe."""

from metarl.experiments.runner.locomotion import PAPER, locomotion_experiment
from metarl.experiments.runner.recipes import (
    COMPARISON,
    CONTEXT,
    ORACLE,
    PENALTY,
    SMALL,
    Recipe,
    for_all_dynamics,
    memory,
    pretrained,
    quadratic,
    recommended,
    small_batches,
    untrained,
)
from metarl.experiments.runner.training import main

SMALL_BATCHES = {SMALL: small_batches(8, 500, extra_step_scale=0.2)}
RECIPES = {
    "maml": Recipe(
        {**PAPER, "max_kl": 0.02}, (-50.69, 293.19, 313.48, 315.65), "KL bound of the paper's published result"
    ),
    "pretrained": pretrained(0.2, (-43.03, -24.75, -12.85, 19.57)),
    "random": untrained(1.0, (-35.74, 21.83, 62.32, 86.19)),
    "oracle": Recipe(ORACLE, (442.69,)),
    "context vector": Recipe(CONTEXT, (-40.49, -44.08, -38.27, -42.50)),
    **COMPARISON,
    "maml, bounds penalty": Recipe(PENALTY),
    "maml, lvc, bounds penalty": Recipe({"estimator": "lvc", **PENALTY}),
    **SMALL_BATCHES,
    **quadratic(SMALL_BATCHES),
    f"{SMALL}, quadratic, bounds penalty": SMALL_BATCHES[SMALL] | {"baseline": "quadratic", **PENALTY},
    **for_all_dynamics(recommended(4, 500, second_order=False, baseline="quadratic")),
    **for_all_dynamics(memory(160, 500), "rl2"),
}
EXPERIMENT = locomotion_experiment(
    "half_cheetah_direction",
    "Meta-train a half-cheetah to run forwards or backwards, whichever the reward asks for.",
    "HalfCheetahDirection",
    RECIPES,
)

if __name__ == "__main__":
    main(EXPERIMENT)
