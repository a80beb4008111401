"""Meta-train a hopper that does not know its masses, inertias, frictions and dampings, by default as recommended."""

from metarl.experiments.runner.locomotion import locomotion_experiment, random_parameters
from metarl.experiments.runner.training import main

EXPERIMENT = locomotion_experiment(
    "hopper_parameters",
    "Meta-train a hopper to run forwards with masses, inertias, frictions and dampings that it does not know.",
    "HopperParameters",
    random_parameters(1000),
)

if __name__ == "__main__":
    main(EXPERIMENT)
