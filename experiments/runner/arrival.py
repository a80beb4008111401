"""When training reached a level of return: the environment steps and the time that it took."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarl.experiments.runner.results import returns_by_steps

WINDOW = 10  # iterations over which returns are averaged


@dataclass(frozen=True)
class Arrival:
    """What a seed needed until its return after one gradient step exceeded a level.

    Attributes:
        env_steps: environment steps.
        minutes: of training, in proportion to iterations; evaluations are not counted.
    """

    env_steps: int
    minutes: float


def arrival(seed: Mapping[str, Any], level: float) -> Arrival | None:
    """Return when a seed's return after one step first exceeded a level, or None if it never did.

    The return is that on the training tasks of an iteration, before they change the meta-parameters, averaged over
    `WINDOW` iterations. Every iteration draws new tasks, so it is an unbiased estimate of the return on unseen tasks.

    Args:
        seed: its entry in a row of results.
        level: of the return.
    """
    if (curve := returns_by_steps(seed)) is None:
        return None
    (env_steps, returns), iterations = curve, seed["curve"]["iteration"]
    width = max(1, round(WINDOW / iterations[0]))  # the points of a curve are means over equal blocks
    if len(returns) < width:
        return None
    above = np.convolve(returns, np.full(width, 1 / width), "valid") > level
    if not above.any():
        return None
    point = int(above.argmax()) + width - 1
    share = iterations[point] / seed["last"]["iterations"]
    return Arrival(int(env_steps[point]), float(share * seed["seconds"] / 60))
