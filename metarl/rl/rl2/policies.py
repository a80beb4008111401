"""Policies with a memory: modules that map what an agent sees and what its last action brought to its next action.

Any `torch.nn.Module` with the signature of `RecurrentPolicy.forward` serves as well. Its inputs are, in this order,

    [observation, previous action, previous reward, 1 if the previous step ended an episode]

as numbers; `input_size` says how many. A discrete action is one-hot. In the first step of a trial all but the
observation are 0.

Axes: B trials, L steps of a trial, I inputs, P distribution parameters, H numbers of a memory.
"""

import math
from collections.abc import Sequence

import gymnasium
import torch
from torch import Tensor, nn

from metarl.core.validation import require_positive, require_whole
from metarl.rl.action_distributions import action_distribution_for
from metarl.rl.policies import ACTIVATIONS, Known, mlp, require_layers

_SMALL = 0.01  # of initial weights, so that the first policy hardly prefers any action


def input_size(observation_space: gymnasium.Space, action_space: gymnasium.Space) -> int:
    """I, the numbers of an input: those of an observation, an action, a reward and a flag."""
    return math.prod(observation_space.shape or ()) + action_distribution_for(action_space).encoded_size + 2


class RecurrentPolicy(nn.Module):
    """A GRU whose state, with a linear layer each, gives the action distribution and the value (Duan et al. 2016).

    Layers with an activation may come before it. A Gaussian has a log standard deviation of its own, which does not
    depend on the memory. The initial policy is close to the same in all states; recurrent weights are orthogonal.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        memory_size: int = 128,
        hidden_sizes: Sequence[int] = (),
        activation: str = "tanh",
        initial_std: float = 1.0,
    ):
        """Make a policy for the inputs that the spaces determine.

        Args:
            observation_space: a `Box`.
            action_space: a `Box`, or `Discrete`.
            memory_size: H, units of the GRU.
            hidden_sizes: widths of the layers before the GRU.
            activation: after each of them.
            initial_std: of a Gaussian.
        """
        super().__init__()
        require_whole("memory_size", memory_size)
        require_positive("initial_std", initial_std)
        require_layers(hidden_sizes, activation)
        self.settings = {"memory_size": memory_size, "hidden_sizes": [*hidden_sizes], "activation": activation}
        sizes = [input_size(observation_space, action_space), *hidden_sizes]
        self.encoder: nn.Module = nn.Identity()
        if hidden_sizes:
            self.encoder = nn.Sequential(mlp(sizes[0], sizes[1:-1], sizes[-1], activation), ACTIVATIONS[activation]())
        self.gru = nn.GRU(sizes[-1], memory_size, batch_first=True)
        for name, value in self.gru.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(value)
            elif name.startswith("weight_hh"):
                nn.init.orthogonal_(value)
        self.discrete = isinstance(action_space, gymnasium.spaces.Discrete)
        actions = action_distribution_for(action_space).encoded_size
        self.action, self.value = nn.Linear(memory_size, actions), nn.Linear(memory_size, 1)
        for layer in (self.action, self.value):
            nn.init.orthogonal_(layer.weight, _SMALL)
            nn.init.zeros_(layer.bias)
        if not self.discrete:
            self.log_std = nn.Parameter(torch.full((actions,), math.log(initial_std)))

    def forward(self, inputs: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Go through some steps of B trials.

        Args:
            inputs: (B, L, I).
            memory: after the steps before, (B, H); None at the beginning of a trial.

        Returns:
            parameters of the action distribution (B, L, P); values, which estimate the discounted sum of the trial's
            further rewards in a unit of the learner's (B, L); and the memory after the last step (B, H).
        """
        state = None if memory is None else memory.unsqueeze(0)
        outputs, state = self.gru(self.encoder(inputs), state)
        dist_params, values = self.action(outputs), self.value(outputs).squeeze(-1)
        if not self.discrete:
            dist_params = torch.cat([dist_params, self.log_std.expand_as(dist_params)], dim=-1)
        return dist_params, values, state.squeeze(0)


RECURRENT: Known = {RecurrentPolicy: ("memory_size", "hidden_sizes", "activation")}
