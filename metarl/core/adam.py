"""Adam, as a function of parameters, gradients and its state."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from metarl.core.parameters import Parameters

AdamState = dict[str, Any]


def initial_adam_state(parameters: Parameters) -> AdamState:
    """Return the state before the first step: a `count` of steps, and the moments `mean` and `square`."""
    zeros = [{name: torch.zeros_like(value) for name, value in parameters.items()} for _ in range(2)]
    return {"count": torch.zeros(()), "mean": zeros[0], "square": zeros[1]}


@torch.no_grad()
def adam_step(
    parameters: Parameters, gradients: Parameters, state: AdamState, step_size: float
) -> tuple[Parameters, AdamState]:
    """Return x - step_size * m^ / (sqrt(v^) + 1e-8), m^ and v^ the bias-corrected moving means of g and g^2.

    The decays of the means are 0.9 and 0.999 (Kingma and Ba 2015). The arithmetic is torch's; the arguments stay as
    they are.

    Args:
        parameters: x, by name, of any shapes.
        gradients: g, of the same names and shapes.
        state: of `initial_adam_state`, or of the step before.
        step_size: the learning rate.

    Returns:
        the new parameters and the new state.
    """
    moved, mean, square = (
        {n: of[n].detach().clone() for n in parameters} for of in (parameters, state["mean"], state["square"])
    )
    count = state["count"].clone()
    steps: list[Tensor] = [count.to(value.device, copy=True) for value in moved.values()]
    adam(
        list(moved.values()),
        [gradients[name] for name in moved],
        list(mean.values()),
        list(square.values()),
        [],
        steps,
        fused=True,
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=step_size,
        weight_decay=0.0,
        eps=1e-8,
        maximize=False,
    )
    return moved, {"count": count + 1, "mean": mean, "square": square}
