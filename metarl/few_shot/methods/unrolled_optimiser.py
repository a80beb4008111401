"""Learning to learn by gradient descent by gradient descent (Andrychowicz et al. 2016), and optimisers to compare with.

    g_t = grad f(x_{t-1}),    (u_t, h_t) = optimiser(g_t, h_{t-1}),    x_t = x_{t-1} + u_t
    loss = sum_t f(x_t),  differentiated in the optimiser's parameters with g_t as a constant

A task is a function f: the loss of a module on the task's support examples. Its parameters x start at the module's own
plus normal noise, which comes with the task. The optimiser has one set of parameters for all coordinates of all tasks.

Axes: M tasks, n coordinates of x.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.core.parameters import Parameters, parameters_of
from metarl.core.settings import check_settings, setting
from metarl.few_shot.method import Method, State
from metarl.few_shot.methods.noise import NoisyTasks, noise_of
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks


@dataclass(frozen=True)
class UnrolledOptimiser(Method):
    """Base class of methods whose `adapt` runs an optimiser with parameters of its own.

    A state holds x under `parameters` and what the optimiser remembers under `memory`. The T steps are cut into pieces
    of `unroll` steps. An iteration differentiates the sum of f over one piece, the pieces in turn, with x and memory at
    its beginning as constants. Deviation: the paper goes on with the same functions from piece to piece; here every
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


def shared_gradient(
    method: Method, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]
) -> tuple[Parameters, Tensor, Tensor]:
    """Return the gradient of a method's loss in a theta that all tasks share, summed over them: (1, ...)."""
    own = {name: value[:1].detach().requires_grad_() for name, value in theta.items()}
    rows = {name: value.expand(len(tasks), *value.shape[1:]) for name, value in own.items()}
    loss, metric = method.loss(rows, tasks, schedule)
    found = torch.autograd.grad(loss.sum(), list(own.values()), materialize_grads=True)
    return dict(zip(own, found, strict=True)), loss.detach(), metric
