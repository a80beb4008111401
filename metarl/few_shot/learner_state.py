"""The state of a few-shot learner."""

from dataclasses import dataclass

from metarl.core.adam import AdamState
from metarl.core.parameters import Parameters, require_alike
from metarl.core.validation import require_whole


@dataclass
class FewShotState:
    """All that changes while a few-shot learner learns.

    Attributes:
        theta: meta-parameters.
        adam: what Adam hands from one update to the next; empty where only theta is known.
        iteration: meta-iterations done.
    """

    theta: Parameters
    adam: AdamState
    iteration: int = 0


def check_state(state: FewShotState, own: FewShotState) -> None:
    """ValueError unless names and shapes in a state are those of a learner's own first state."""
    require_alike("parameters", state.theta, own.theta)
    if state.adam:
        require_alike("state of Adam", state.adam, own.adam)
    require_whole("iteration", state.iteration, at_least=0)
