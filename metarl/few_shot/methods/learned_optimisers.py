"""Optimisers of a module's parameters on a task: one that is an LSTM and learned, and the usual ones.

Both derive from `UnrolledOptimiser` (Andrychowicz et al. 2016). Axes: M tasks, n coordinates, R = M n rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.core.parallel import own_copy
from metarl.core.parameters import Parameters, parameters_of
from metarl.core.settings import setting
from metarl.few_shot.method import State
from metarl.few_shot.methods.unrolled_optimiser import UnrolledOptimiser


class CoordinateLSTM(nn.Module):
    """An LSTM and a linear layer that turn a coordinate's gradient into its update.

    Args:
        hidden: units of each layer.
        layers: of the LSTM.
        log_scale: p of the preprocessing; 0 takes the gradient as it is.
        output_scale: factor of the updates.
    """

    def __init__(self, hidden: int = 20, layers: int = 2, log_scale: float = 0.0, output_scale: float = 1.0):
        super().__init__()
        sizes = [2 if log_scale else 1, *[hidden] * layers]
        self.cells = nn.ModuleList(nn.LSTMCell(a, hidden) for a in sizes[:-1])
        self.head = nn.Linear(hidden, 1)
        self.hidden, self.log_scale, self.output_scale = hidden, log_scale, output_scale
        nn.init.zeros_(self.head.bias)  # a constant update would lead all coordinates away at first

    def forward(self, gradient: Tensor, memory: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Gradients (R,) and the memory, of each layer h and c (R, hidden), to updates (R,) and the new memory."""
        values = log_and_sign(gradient, self.log_scale) if self.log_scale else gradient.unsqueeze(-1)
        new: list[Tensor] = []
        for index, cell in enumerate(self.cells):
            values, c = cell(values, (memory[2 * index], memory[2 * index + 1]))
            new += [values, c]
        return self.output_scale * self.head(values).squeeze(-1), new


def log_and_sign(values: Tensor, scale: float) -> Tensor:
    """Return (log |v| / p, sign v), or (-1, e^p v) where |v| < e^-p, on a new last axis (Andrychowicz et al. 2016)."""
    size = values.abs()
    large = size >= np.exp(-scale)
    first = torch.where(large, size.clamp(min=torch.finfo(values.dtype).tiny).log() / scale, -1.0)
    second = torch.where(large, values.sign(), values * float(np.exp(scale)))
    return torch.stack([first, second], dim=-1)


@dataclass(frozen=True)
class LearnedOptimiser(UnrolledOptimiser):
    """An LSTM that is the same for all coordinates.

    Attributes:
        optimiser: learned; maps gradients and memory to updates and memory, see `CoordinateLSTM`.
    """

    optimiser: CoordinateLSTM = field(default_factory=CoordinateLSTM)

    def meta_parameters(self) -> Parameters:
        """Return the LSTM's parameters."""
        return parameters_of(self.optimiser)

    def remembered(self, theta: Parameters, point: Tensor) -> State:
        """Return zeros for h and c of each layer, (M, n, hidden)."""
        zeros = point.new_zeros(*point.shape, self.optimiser.hidden)
        return {f"{name}{index}": zeros for index in range(len(self.optimiser.cells)) for name in ("h", "c")}

    def proposed(self, theta: Parameters, gradient: Tensor, memory: State) -> tuple[Tensor, State]:
        """Return the LSTM's output for each coordinate."""
        rows = [value.flatten(0, 1) for value in memory.values()]
        update, new = functional_call(own_copy(self.optimiser), theta, (gradient.flatten(), rows))
        unflattened = [value.unflatten(0, gradient.shape) for value in new]
        return update.view_as(gradient), dict(zip(memory, unflattened, strict=True))


OPTIMISERS = ("sgd", "momentum", "rmsprop", "adam")


@dataclass(frozen=True)
class TunedOptimiser(UnrolledOptimiser):
    """A usual optimiser, whose step size is learned in the same way as an LSTM, or stays where it starts.

    `momentum` is Nesterov's, with 0.9; `rmsprop` averages squares with 0.99, `adam` as in the paper with 0.9 and 0.999,
    as torch has them. Theta is the logarithm of the step size.
    """

    algorithm: str = setting("adam", "the optimiser", choices=OPTIMISERS)
    step_size: float = setting(0.1, "its step size before training", more_than=0, flag="optimiser_step_size")

    def meta_parameters(self) -> Parameters:
        """Return the logarithm of the step size."""
        like = next(iter(self._start.values()))
        return {"log_step_size": like.new_tensor(self.step_size).log()}

    def remembered(self, theta: Parameters, point: Tensor) -> State:
        """Return zeros for both moving averages, and for the number of steps."""
        zeros = torch.zeros_like(point)
        return {"mean": zeros, "square": zeros, "count": point.new_zeros(len(point), 1)}

    def proposed(self, theta: Parameters, gradient: Tensor, memory: State) -> tuple[Tensor, State]:
        """Return minus the step size times the optimiser's direction."""
        count, (mean, square) = memory["count"] + 1, (memory["mean"], memory["square"])
        if self.algorithm == "momentum":
            mean = 0.9 * mean + gradient
            direction = gradient + 0.9 * mean
        elif self.algorithm == "rmsprop":
            square = 0.99 * square + 0.01 * gradient.square()
            direction = gradient / (square.sqrt() + 1e-8)
        elif self.algorithm == "adam":
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
            direction = mean / (1 - 0.9**count) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
        else:
            direction = gradient
        return -theta["log_step_size"].exp() * direction, {"mean": mean, "square": square, "count": count}
