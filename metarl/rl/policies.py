"""Policies: modules that map observations (batch, O) to the parameters of an action distribution (batch, P).

Any other `torch.nn.Module` with that signature serves as well;
`metarl.rl.action_distributions` says what P is, and in which order.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from metarl.core.validation import require, require_positive, require_whole

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def require_layers(hidden_sizes: Sequence[int], activation: str) -> None:
    """ValueError for other widths than whole numbers, or an activation that is not there."""
    require(isinstance(activation, str) and activation in ACTIVATIONS, "activation", activation, ", ".join(ACTIVATIONS))
    require(isinstance(hidden_sizes, Sequence), "hidden_sizes", hidden_sizes, "a list of widths")
    for size in hidden_sizes:
        require_whole("hidden_sizes", size)


def mlp(inputs: int, hidden_sizes: Sequence[int], outputs: int, activation: str) -> nn.Sequential:
    """Linear layers with an activation between them; Xavier-uniform weights and zero biases (Finn et al. 2017)."""
    require_layers(hidden_sizes, activation)
    sizes = [inputs, *hidden_sizes, outputs]
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes):
        linear = nn.Linear(size_in, size_out)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


class GaussianMLP(nn.Module):
    """Diagonal Gaussian for a `Box` action space: an MLP for the mean, and a log standard deviation of its own.

    The log standard deviation does not depend on the state; it is learned and adapted like any other parameter, and
    bounded from below by `minimum_std` (defaults of Finn et al. 2017).
    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        hidden_sizes: Sequence[int] = (100, 100),
        activation: str = "relu",
        initial_std: float = 1.0,
        minimum_std: float = 1e-6,
    ):
        super().__init__()
        require_positive("initial_std", initial_std)
        require_positive("minimum_std", minimum_std)
        actions = _size(action_space, gymnasium.spaces.Box)
        self.mean = mlp(_size(observation_space, gymnasium.spaces.Box), hidden_sizes, actions, activation)
        self.settings = {"hidden_sizes": list(hidden_sizes), "activation": activation, "minimum_std": minimum_std}
        self.log_std = nn.Parameter(torch.full((actions,), math.log(initial_std)))
        self.minimum_log_std = math.log(minimum_std)

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Patterns of the parameters that ANIL adapts: the last linear layer and the log standard deviation."""
        return (f"mean.{len(self.mean) - 1}.*", "log_std")

    def forward(self, observations: Tensor) -> Tensor:
        """Map observations (batch, ...) to mean and log standard deviation, (batch, 2A)."""
        mean = self.mean(observations.reshape(len(observations), -1))
        log_std = self.log_std.clamp(min=self.minimum_log_std)
        return torch.cat([mean, log_std.expand_as(mean)], dim=-1)


class CategoricalMLP(nn.Module):
    """Logits for a `Discrete` action space."""

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        hidden_sizes: Sequence[int] = (100, 100),
        activation: str = "relu",
    ):
        super().__init__()
        actions = _size(action_space, gymnasium.spaces.Discrete)
        self.logits = mlp(_size(observation_space, gymnasium.spaces.Box), hidden_sizes, actions, activation)
        self.settings = {"hidden_sizes": list(hidden_sizes), "activation": activation}

    @property
    def last_layer(self) -> tuple[str, ...]:
        """Patterns of the parameters that ANIL adapts: the last linear layer."""
        return (f"logits.{len(self.logits) - 1}.*",)

    def forward(self, observations: Tensor) -> Tensor:
        """Map observations (batch, ...) to logits (batch, n)."""
        return self.logits(observations.reshape(len(observations), -1))


class WithContext(nn.Module):
    """Feed a module its inputs joined with a context vector, which is a parameter named `context` that starts at 0.

    Adapting the context alone is CAVIA (Zintgraf et al. 2019), section 4.1: phi concatenated to the input.
    """

    def __init__(self, module: nn.Module, size: int):
        """Wrap a module whose inputs are `size` numbers longer than those that will be given."""
        super().__init__()
        self.module = module
        self.context = nn.Parameter(torch.zeros(size))

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, O) to whatever the module makes of (batch, O + size)."""
        return self.module(torch.cat([inputs, self.context.expand(*inputs.shape[:-1], -1)], dim=-1))


class DictObservations(nn.Module):
    """Feed a module the parts of a `Dict` observation that was flattened, as a dict of tensors.

    A part keeps the shape of its `Box`; other spaces come as `gymnasium.spaces.flatten` leaves them, a `Discrete` as
    one of n.
    """

    def __init__(self, module: nn.Module, space: gymnasium.spaces.Dict):
        """Wrap a module that takes a dict of tensors (batch, ...), one for each part of the space."""
        super().__init__()
        self.module = module
        self.shapes = {
            name: part.shape if isinstance(part, Box) else (gymnasium.spaces.flatdim(part),)
            for name, part in space.items()
        }

    def forward(self, observations: Tensor) -> Tensor:
        """Flat observations (batch, O) to whatever the module makes of their parts."""
        parts = observations.split([math.prod(shape) for shape in self.shapes.values()], dim=-1)
        shaped = zip(self.shapes.items(), parts, strict=True)
        return self.module({name: part.unflatten(-1, shape or (1,)) for (name, shape), part in shaped})


Known = Mapping[type[nn.Module], Sequence[str]]  # classes of policies, and the settings that make one again
MLPS: Known = {
    GaussianMLP: ("hidden_sizes", "activation", "minimum_std"),
    CategoricalMLP: ("hidden_sizes", "activation"),
}


def describe(policy: nn.Module, known: Known = MLPS) -> dict[str, Any]:
    """What `from_description` needs to make a policy again, as plain data; one of another class has only a name."""
    name = type(policy).__name__
    if isinstance(policy, WithContext):
        return {"kind": name, "size": len(policy.context), "module": describe(policy.module, known)}
    settings: Any = policy.settings if isinstance(policy, tuple(known)) else {}
    return {"kind": name, **settings}


def from_description(
    description: Any, observation_space: Box, action_space: gymnasium.Space, known: Known = MLPS
) -> nn.Module:
    """A policy with new parameters; ValueError for one of another class than the known ones."""
    is_known = isinstance(description, dict) and isinstance(description.get("kind"), str)
    require(is_known, "agent", description, "a dict with the kind of the policy and its settings")
    kind, settings = description["kind"], {name: value for name, value in description.items() if name != "kind"}
    if kind == "WithContext":
        require(settings.keys() == {"size", "module"}, "settings of WithContext", [*settings], "size and module")
        require_whole("size", settings["size"])
        wider = Box(-np.inf, np.inf, (_size(observation_space, Box) + settings["size"],))
        return WithContext(from_description(settings["module"], wider, action_space, known), settings["size"])
    if (made := next((of for of in known if of.__name__ == kind), None)) is None:
        raise ValueError(f"its policy is a {kind}, which {next(iter(known)).__module__} cannot make")
    require(settings.keys() <= {*known[made]}, f"settings of {kind}", [*settings], ", ".join(known[made]))
    return made(observation_space, action_space, **settings)


def _size(space: gymnasium.Space, kind: type[gymnasium.Space]) -> int:
    if not isinstance(space, kind):
        raise ValueError(f"space {space} does not fit this policy; allowed: {kind.__name__}")
    return int(space.n) if isinstance(space, gymnasium.spaces.Discrete) else math.prod(space.shape or ())
