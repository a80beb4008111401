"""Meta-train a walker that does not know its masses, inertias, frictions and dampings, by default as recommended."""

from metarl.experiments.runner.locomotion import locomotion_experiment, random_parameters
from metarl.experiments.runner.training import main

EXPERIMENT = locomotion_experiment(
    "walker_parameters",
    "Meta-train a walker to run forwards with masses, inertias, frictions and dampings that it does not know.",
    "WalkerParameters",
    random_parameters(1000),
)

if __name__ == "__main__":
    main(EXPERIMENT)
