"""Learning to learn by gradient descent by gradient descent (Andrychowicz et al. 2016), and optimisers to compare with.

    g_t = grad f(x_{t-1}),    (u_t, h_t) = optimiser(g_t, h_{t-1}),    x_t = x_{t-1} + u_t
    loss = sum_t f(x_t),  differentiated in the optimiser's parameters with g_t as a constant

A task is a function f: the loss of a module on the task's support examples. Its parameters x start at the module's own
plus normal noise, which comes with the task. The optimiser has one set of parameters for all coordinates of all tasks.

Axes: M tasks, n coordinates of x.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.core.parallel import own_copy
from metarl.core.parameters import Parameters, parameters_of
from metarl.core.settings import check_settings, setting
from metarl.core.validation import require_whole
from metarl.few_shot.criteria import Criterion, squared_error
from metarl.few_shot.method import Method, State
from metarl.few_shot.noise import NoisyTasks, noise_of
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks


@dataclass(frozen=True)
class Quadratics:
    """The functions f(x) = |W x - y|^2 with elements of W and y from N(0, 1), as tasks of a linear module.

    The rows of W are the inputs of `nn.Linear(size, 1, bias=False)` and y their targets; the query examples are the
    support examples.

    Attributes:
        size: rows and columns of W.
    """

    size: int = 10

    def __post_init__(self) -> None:
        require_whole("size", self.size)

    def sample(self, num_tasks: int, split: str, rng: np.random.Generator) -> FewShotTasks:
        """Draw functions: inputs (M, size, size) and targets (M, size, 1)."""
        drawn = torch.from_numpy(rng.standard_normal((num_tasks, self.size, self.size + 1))).float()
        examples = Examples(drawn[:, :, :-1].contiguous(), drawn[:, :, -1:].contiguous())
        return FewShotTasks(examples, examples)


def summed_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of squared errors of each task, (M,): f itself, where the metric is f over its number of rows."""
    return squared_error(outputs, targets) * targets[0].numel()


QUADRATIC = Criterion("mse", summed_squares, squared_error, higher_is_better=False)


@dataclass(frozen=True)
class UnrolledOptimiser(Method):
    """Base class of methods whose `adapt` runs an optimiser with parameters of its own.

    A state holds x under `parameters` and what the optimiser remembers under `memory`. The T steps are cut into pieces
    of `unroll` steps. An iteration differentiates the sum of f over one piece, the pieces in turn, with x and the memory
    at its beginning as constants. Deviation: the paper goes on with the same functions from piece to piece; here every
    iteration draws new ones, on which the optimiser takes the steps before the piece without a graph. The metric of
    an iteration is that after its piece.

    Attributes:
        total_steps: T, steps on each function.
    """

    total_steps: int = setting(100, "steps of an optimiser on each function", at_least=1, flag="optimisation_steps")
    unroll: int = setting(20, "steps through which the gradient runs", at_least=1, source="paper")
    initial_std: float = setting(0.01, "standard deviation of starting points", at_least=0, source="paper's code")

    def __post_init__(self) -> None:
        check_settings(self)

    @abstractmethod
    def remembered(self, theta: Parameters, point: Tensor) -> State:
        """Return what the optimiser remembers before its first step, for x (M, n)."""

    @abstractmethod
    def proposed(self, theta: Parameters, gradient: Tensor, memory: State) -> tuple[Tensor, State]:
        """Return the update u (M, n) for a gradient (M, n), and the new memory; theta has no axis of tasks."""

    @property
    def inner_steps(self) -> int:
        """T."""
        return self.total_steps

    @property
    def shares_theta(self) -> bool:
        """True: all tasks have the same optimiser."""
        return True

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return tasks with the noise of their starting points."""
        return NoisyTasks(task_distribution, sum(value.numel() for value in self._start.values()))

    evaluation_tasks = training_tasks

    def adapt(self, theta: Parameters, support: Examples) -> State:
        """Return x and the memory after T steps, differentiably in theta."""
        own = {name: value[0] for name, value in theta.items()}
        state = self.first_state(own, support)
        for _ in range(self.total_steps):
            state = self.stepped(own, state, support)
        return state

    def states(self, theta: Parameters, support: Examples, inner_steps: int) -> list[State]:
        """Return x and the memory after 0 ... S steps."""
        own = {name: value[0] for name, value in theta.items()}
        with torch.no_grad():
            states = [self.first_state(own, support)]
            for _ in range(inner_steps):
                states.append(self.stepped(own, states[-1], support))
        return states

    def predict(self, theta: Parameters, state: State, inputs: Tensor) -> Tensor:
        """Return the module's outputs at x."""
        return self.call(self._shaped(state["parameters"]), inputs)

    def schedule(self, iteration: int) -> dict[str, float]:
        """Return the number of the piece that an iteration learns from."""
        return {"piece": iteration % max(1, self.total_steps // self.unroll)}

    def loss(self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the sum of f over a piece, and the metric after it."""
        own = {name: value[0] for name, value in theta.items()}
        with torch.no_grad():
            state = self.first_state(own, tasks.support)
            for _ in range(int(schedule["piece"]) * self.unroll):
                state = self.stepped(own, state, tasks.support)
        losses = []
        for _ in range(min(self.unroll, self.total_steps)):
            state = self.stepped(own, state, tasks.support)
            loss, metric = self.criterion(self.predict(theta, state, tasks.query.inputs), tasks.query.targets)
            losses.append(loss)
        return torch.stack(losses).sum(dim=0), metric

    def gradient(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """Return the gradient of `loss` summed over tasks, (1, ...), and each task's loss and metric, (M,)."""
        return shared_gradient(self, theta, tasks, schedule)

    def first_state(self, theta: Parameters, support: Examples) -> State:
        """Return the starting points, and what the optimiser remembers before its first step."""
        mean = torch.cat([value.flatten() for value in self._start.values()]).to(support.inputs)
        point = mean + self.initial_std * noise_of(support, len(mean))
        return {"parameters": point, "memory": self.remembered(theta, point)}

    def stepped(self, theta: Parameters, state: State, support: Examples) -> State:
        """Return the state after one more step."""
        with torch.enable_grad():
            point = state["parameters"].detach().requires_grad_()
            value = self.criterion.loss(self.call(self._shaped(point), support.inputs), support.targets)
            [gradient] = torch.autograd.grad(value.sum(), [point])
        update, memory = self.proposed(theta, gradient, state["memory"])
        return {"parameters": state["parameters"] + update, "memory": memory}

    @property
    def _start(self) -> Parameters:
        return parameters_of(self.module)

    def _shaped(self, point: Tensor) -> Parameters:
        """x (M, n) as the module's parameters (M, ...)."""
        start = self._start
        pieces = point.split([value.numel() for value in start.values()], dim=1)
        return {name: piece.unflatten(1, start[name].shape) for name, piece in zip(start, pieces, strict=True)}


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


def shared_gradient(
    method: Method, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]
) -> tuple[Parameters, Tensor, Tensor]:
    """Return the gradient of a method's loss in a theta that all tasks share, summed over them, as `Method.gradient`."""
    own = {name: value[:1].detach().requires_grad_() for name, value in theta.items()}
    rows = {name: value.expand(len(tasks), *value.shape[1:]) for name, value in own.items()}
    loss, metric = method.loss(rows, tasks, schedule)
    found = torch.autograd.grad(loss.sum(), list(own.values()), materialize_grads=True)
    return dict(zip(own, found, strict=True)), loss.detach(), metric
