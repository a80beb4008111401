"""Policies with fixed parameters that act, and their files."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn
from torch.func import functional_call

from metarl.core.ambient import in_standard_modes
from metarl.core.errors import NonFiniteError
from metarl.core.parameters import Parameters, constants_of, own_module, parameters_of, require_alike, restore_constants
from metarl.rl.action_distributions import action_distribution_for
from metarl.rl.policies import describe, from_description
from metarl.runs import RunError, load_checkpoint, save_checkpoint


class Agent:
    """A policy with fixed parameters that maps an observation of the environment to an action for it.

    It works on a copy of the policy, so it may act in one thread while a learner learns in another.

    Attributes:
        policy: maps observations (batch, ...) to the parameters of an action distribution (batch, P).
        parameters: of the policy.
        action_space: `Box` or `Discrete`.
        observation_shape: of one observation.
    """

    def __init__(
        self,
        policy: nn.Module,
        parameters: Parameters,
        action_space: gymnasium.Space,
        observation_shape: tuple[int, ...],
    ):
        self.policy, self.parameters = own_module(policy, next(iter(parameters.values())).device), parameters
        self.action_space, self.observation_shape = action_space, observation_shape
        self.action_distribution = action_distribution_for(action_space)

    @in_standard_modes
    @torch.no_grad()
    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """The most likely action, within the bounds of the action space; NonFiniteError where the policy has none."""
        if np.shape(observation) != self.observation_shape:
            raise ValueError(
                f"the observation has shape {np.shape(observation)}; allowed: {self.observation_shape} "
                "(of spaces other than Box as gymnasium.spaces.flatten makes it)"
            )
        device = next(iter(self.parameters.values())).device
        batch = torch.from_numpy(np.array(observation, np.float32, order="C")).to(device)[None]
        output = functional_call(self.policy, self.parameters, (batch,))
        if output.isnan().any():
            raise NonFiniteError("the output of the policy is not a number")
        return self.action_distribution.to_environment(self.action_distribution.mode(output).cpu().numpy())[0]

    def save(self, path: Path | str) -> None:
        """Write all that acting needs, which is numbers and names; RunError if the file cannot be written."""
        state = {
            "agent": describe(self.policy),
            "parameters": {name: value.cpu().clone() for name, value in self.parameters.items()},  # of one task alone
            "constants": {name: value.cpu() for name, value in constants_of(self.policy).items()},
            "observation_shape": list(self.observation_shape),
            "action_space": _space_to_data(self.action_space),
        }
        save_checkpoint(Path(path), state)

    @classmethod
    def load(cls, path: Path | str, policy: nn.Module | None = None) -> "Agent":
        """Read an agent, executing nothing that the file holds; neither the environment nor the run is needed.

        Args:
            path: what `save` wrote.
            policy: a module like the one that was saved, needed only for one that is not of `metarl.rl.policies`.

        Raises:
            RunError: a file that is no agent's, or whose policy is not of `metarl.rl.policies` and not given.
        """
        state = load_checkpoint(Path(path))
        if "agent" not in state:
            raise RunError(f"{path} holds no agent; allowed: what Agent.save or experiments/adapt.py wrote")
        space, shape = _space_from_data(state["action_space"]), tuple(state["observation_shape"])
        if policy is None:
            try:
                policy = from_description(state["agent"], Box(-np.inf, np.inf, shape), space)
            except ValueError as error:
                raise RunError(f"{path}: {error}; allowed: Agent.load(path, policy)") from error
        try:
            require_alike("parameters", state["parameters"], parameters_of(policy))
            restore_constants(policy, state.get("constants"))
        except ValueError as error:
            raise RunError(f"{path}: {error}") from error
        return cls(policy, state["parameters"], space, shape)


def _space_to_data(space: gymnasium.Space) -> dict[str, Any]:
    if isinstance(space, Discrete):
        return {"n": int(space.n), "start": int(space.start)}
    assert isinstance(space, Box), "action_distribution_for takes no other"
    return {"low": space.low.tolist(), "high": space.high.tolist(), "dtype": str(space.dtype)}


def _space_from_data(data: dict[str, Any]) -> gymnasium.Space:
    if "n" in data:
        return Discrete(data["n"], start=data["start"])
    dtype: Any = np.dtype(data["dtype"])
    return Box(np.array(data["low"], dtype), np.array(data["high"], dtype), dtype=dtype.type)
