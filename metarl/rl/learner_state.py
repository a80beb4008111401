"""The state of a learner."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from metarl.core.parameters import Parameters, copied_to
from metarl.rl.outer import State


@dataclass
class LearnerState:
    """All that changes while a learner learns.

    Attributes:
        theta: meta-parameters.
        outer: what the outer optimiser hands from one update to the next.
        iteration: meta-iterations done.
        env_steps: environment steps taken in training.
    """

    theta: Parameters
    outer: State
    iteration: int = 0
    env_steps: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LearnerState":
        """Make a state of what `Learner.state_dict` returned; ValueError if a part is missing."""
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"the state has no {', '.join(missing)}; needed: {', '.join(names)}")
        return cls(**{name: values[name] for name in names})

    def copied_to(self, device: str) -> "LearnerState":
        """Return a copy with its tensors on a device."""
        theta, outer = (copied_to(part, device) for part in (self.theta, self.outer))
        return LearnerState(theta, outer, int(self.iteration), int(self.env_steps))
