"""The LSTM meta-learner (Ravi and Larochelle 2017): an LSTM cell whose memory is the parameters of a network.

    i_t = sigmoid(W_I [h_t, theta_{t-1}, i'_{t-1}] + b_I),    f_t = sigmoid(W_F [h_t, theta_{t-1}, f'_{t-1}] + b_F)
    theta_t = f_t theta_{t-1} - i_t g_t

for each coordinate by itself, with i' and f' the gates before the sigmoid, 0 at first, and h_t the state of an LSTM
whose inputs are the loss and the gradient g_t on the support examples. With f = 1 and i = alpha it is gradient descent.
The first theta is learned as well. Losses and gradients are constants: there are no second derivatives.

Axes: M tasks, n coordinates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.core.parallel import own_copy
from metarl.core.parameters import Parameters, parameters_of
from metarl.core.settings import check_settings, setting
from metarl.few_shot.method import Method, State
from metarl.few_shot.methods.learned_optimisers import log_and_sign
from metarl.few_shot.methods.unrolled_optimiser import shared_gradient
from metarl.few_shot.tasks import Examples, FewShotTasks

_PREFIX = "meta_lstm."


class GateLSTM(nn.Module):
    """The learned update of a coordinate: an LSTM cell, and the two gates.

    Args:
        hidden: units of the LSTM.
        log_scale: p of the preprocessing of losses and gradients, see `log_and_sign`.
    """

    def __init__(self, hidden: int = 20, log_scale: float = 10.0):
        super().__init__()
        self.cell = nn.LSTMCell(4, hidden)
        self.forget, self.input = nn.Linear(hidden + 2, 1), nn.Linear(hidden + 2, 1)
        self.hidden, self.log_scale = hidden, log_scale
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.01, 0.01)
        nn.init.uniform_(self.forget.bias, 4.0, 5.0)  # so that the first steps are gradient descent with small steps
        nn.init.uniform_(self.input.bias, -5.0, -4.0)

    def forward(
        self, point: Tensor, gradient: Tensor, loss: Tensor, memory: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Move coordinates (R,) with gradients and losses (R,).

        Returns:
            the new coordinates, and the memory: `h` and `c` (R, hidden), the gates `forget` and `input` (R,).
        """
        inputs = torch.cat([log_and_sign(loss, self.log_scale), log_and_sign(gradient, self.log_scale)], dim=1)
        h, c = self.cell(inputs, (memory["h"], memory["c"]))
        gates = {
            name: layer(torch.cat([h, torch.stack([point, memory[name]], dim=1)], dim=1)).squeeze(1)
            for name, layer in (("forget", self.forget), ("input", self.input))
        }
        moved = gates["forget"].sigmoid() * point - gates["input"].sigmoid() * gradient
        return moved, {"h": h, "c": c, **gates}


@dataclass(frozen=True)
class MetaLSTM(Method):
    """An LSTM that learns to train the module on a few examples, and from where (Ravi and Larochelle 2017).

    Theta holds the first parameters under the names of the module's own, and those of the LSTM. All of a task's support
    examples are in each batch, as in the paper's 1-shot model. Deviation: the paper's code normalises with running
    statistics that are gathered on the support; here batch norms use the batch at hand.

    Attributes:
        gates: the learned update.
        total_steps: T, updates on a task.
    """

    gates: GateLSTM = field(default_factory=GateLSTM)
    total_steps: int = setting(12, "updates on a task", at_least=1, source="authors' setting", flag="inner_steps")

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def inner_steps(self) -> int:
        """T."""
        return self.total_steps

    @property
    def shares_theta(self) -> bool:
        """True: all tasks start from the same parameters, with the same LSTM."""
        return True

    def meta_parameters(self) -> Parameters:
        """Return the first parameters and the LSTM's."""
        learned = {_PREFIX + name: value for name, value in parameters_of(self.gates).items()}
        return {**parameters_of(self.module), **learned}

    def adapt(self, theta: Parameters, support: Examples) -> State:
        """Return parameters and memory after T updates, differentiably in theta."""
        return self._run(theta, support, self.total_steps)[-1]

    def states(self, theta: Parameters, support: Examples, inner_steps: int) -> list[State]:
        """Return parameters and memory after 0 ... S updates."""
        with torch.no_grad():
            return self._run(theta, support, inner_steps)

    def predict(self, theta: Parameters, state: State, inputs: Tensor) -> Tensor:
        """Return the module's outputs with a task's parameters."""
        buffers = {name: value for name, value in theta.items() if not name.startswith(_PREFIX)}
        return self.call({**buffers, **self._shaped(state["parameters"])}, inputs)

    def gradient(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """Return the gradient summed over tasks, (1, ...), and each task's loss and metric, (M,)."""
        return shared_gradient(self, theta, tasks, schedule)

    def _run(self, theta: Parameters, support: Examples, steps: int) -> list[State]:
        first = torch.cat([theta[name].flatten(1) for name in parameters_of(self.module)], dim=1)
        zeros = torch.zeros_like(first)
        wide = first.new_zeros(*first.shape, self.gates.hidden)
        memory = {"h": wide, "c": wide, "forget": zeros, "input": zeros}
        states: list[State] = [{"parameters": first, "memory": memory}]
        for _ in range(steps):
            states.append(self._stepped(theta, states[-1], support))
        return states

    def _stepped(self, theta: Parameters, state: State, support: Examples) -> State:
        own = {name.removeprefix(_PREFIX): v[0] for name, v in theta.items() if name.startswith(_PREFIX)}
        point = state["parameters"]
        with torch.enable_grad():
            fixed = point.detach().requires_grad_()
            losses = self.criterion.loss(self.call(self._shaped(fixed), support.inputs), support.targets)
            [gradient] = torch.autograd.grad(losses.sum(), [fixed])
        spread = losses.detach().unsqueeze(1).expand_as(point)
        rows = {name: value.flatten(0, 1) for name, value in state["memory"].items()}
        arguments = (point.flatten(), gradient.flatten(), spread.flatten(), rows)
        moved, memory = functional_call(own_copy(self.gates), own, arguments)
        shaped = {name: value.unflatten(0, point.shape) for name, value in memory.items()}
        return {"parameters": moved.view_as(point), "memory": shaped}

    def _shaped(self, point: Tensor) -> Parameters:
        """Coordinates (M, n) as the module's parameters (M, ...)."""
        own = parameters_of(self.module)
        pieces = point.split([value.numel() for value in own.values()], dim=1)
        return {name: piece.unflatten(1, value.shape) for (name, value), piece in zip(own.items(), pieces, strict=True)}
