"""The outer loop of few-shot learning: Adam on the meta-gradient, with a cosine schedule and clipping."""

import math
from dataclasses import dataclass

from metarl.core.adam import AdamState, adam_step, initial_adam_state
from metarl.core.parameters import Parameters
from metarl.core.settings import check_settings, setting
from metarl.core.validation import require_whole


@dataclass(frozen=True)
class OuterLoop:
    """One Adam step on the meta-gradient per iteration (Kingma and Ba 2015).

    Attributes:
        iterations: of the whole training, at the end of which the cosine arrives at `final_learning_rate`.
    """

    learning_rate: float = setting(0.001, "step size of Adam in the outer loop", more_than=0, source="paper's code")
    final_learning_rate: float | None = setting(
        None, "step size of Adam in the last iteration, at the end of a cosine; none keeps it constant", more_than=0
    )
    clip: float | None = setting(
        None, "bound on the absolute value of each element of the meta-gradient; none for no bound", more_than=0
    )
    iterations: int = 60_000

    def __post_init__(self) -> None:
        check_settings(self)
        require_whole("iterations", self.iterations)

    def start(self, theta: Parameters) -> AdamState:
        """Return Adam's state before the first update."""
        return initial_adam_state(theta)

    def update(
        self, theta: Parameters, gradient: Parameters, adam: AdamState, iteration: int
    ) -> tuple[Parameters, AdamState]:
        """Return theta and Adam's state after the update of an iteration, counted from 0.

        Args:
            theta: meta-parameters.
            gradient: the meta-gradient, of the same names and shapes.
            adam: of the update before, or of `start`.
            iteration: that the learning rate belongs to.
        """
        if self.clip is not None:
            gradient = {name: value.clamp(-self.clip, self.clip) for name, value in gradient.items()}
        return adam_step(theta, gradient, adam, self.learning_rate_at(iteration))

    def learning_rate_at(self, iteration: int) -> float:
        """Return the step size of Adam in an iteration, counted from 0."""
        if self.final_learning_rate is None:
            return self.learning_rate
        share = min(1.0, iteration / self.iterations)
        above = (self.learning_rate - self.final_learning_rate) * (1 + math.cos(math.pi * share)) / 2
        return self.final_learning_rate + above
