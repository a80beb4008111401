"""Policies with fixed parameters that act, and their files."""

from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.func import functional_call

from metarl.core.ambient import in_standard_modes
from metarl.core.errors import NonFiniteError
from metarl.core.parameters import Parameters, constants_of, own_module, parameters_of, require_alike, restore_constants
from metarl.core.randomness import RolloutKey
from metarl.core.validation import in_short, require, require_whole
from metarl.rl.action_distributions import action_distribution_for
from metarl.rl.policies import MLPS, Known, describe, from_description
from metarl.runs import RunError, load_checkpoint, save_checkpoint


class Agent:
    """A policy with fixed parameters that maps an observation of the environment to an action for it.

    It works on a copy of the policy, so it may act in one thread while a learner learns in another. For policies with
    a memory there is `metarl.rl.rl2.agent.RecurrentAgent`.

    Attributes:
        policy: maps observations (batch, ...) to the parameters of an action distribution (batch, P).
        parameters: of the policy.
        action_space: `Box` or `Discrete`.
        observation_shape: of one observation.
    """

    _known: ClassVar[Known] = MLPS  # policies that a file can make again

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
        self._rng = np.random.default_rng()
        self.begin_trial()

    @in_standard_modes
    @torch.no_grad()
    def __call__(self, observation: np.ndarray, deterministic: bool = True, seed: int | None = None) -> np.ndarray:
        """An action for an observation, within the bounds of the action space.

        Args:
            observation: of one environment, as its space has it.
            deterministic: the most likely action; False draws one from the policy's distribution, as training does.
            seed: starts the agent's random numbers anew, as that of `gymnasium.Env.reset` does those of an environment;
                None goes on with them. It has no effect on the most likely action.

        Raises:
            NonFiniteError: an observation for which the policy gives no numbers.
        """
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        if np.shape(observation) != self.observation_shape:
            raise ValueError(
                f"the observation has shape {np.shape(observation)}; allowed: {self.observation_shape} "
                "(of spaces other than Box as gymnasium.spaces.flatten makes it)"
            )
        batch = torch.from_numpy(np.array(observation, np.float32, order="C")).to(self._device)[None]
        action = self._act(batch, deterministic)
        return self.action_distribution.to_environment(action.cpu().numpy())[0]

    def begin_trial(self) -> None:
        """Forget what was observed: the next observation is the first one of a new task."""

    def observe(self, reward: float, ended: bool) -> None:
        """Take note of what the last action brought, which changes nothing for a policy without a memory.

        Args:
            reward: of the environment.
            ended: whether the episode has ended, by termination or at a time limit.
        """

    def _act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """The action of the policy for one observation, (1, ...)."""
        return self._choose(self._call(observations), deterministic)

    def _call(self, *inputs: Any) -> Any:
        """The policy with the agent's parameters."""
        return functional_call(self.policy, self.parameters, inputs)

    def _choose(self, output: Tensor, deterministic: bool) -> Tensor:
        """The most likely action of the policy's output (1, P), or one that is drawn."""
        if output.isnan().any():
            raise NonFiniteError("the output of the policy is not a number")
        family = self.action_distribution
        if deterministic:
            return family.mode(output)
        key = RolloutKey(int(self._rng.integers(2**63)), "act", 0)
        return family.sample(output, torch.from_numpy(family.noise(key, 1, 1, 1)[0, 0]).to(self._device))

    @property
    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def save(self, path: Path | str) -> None:
        """Write all that acting needs, which is numbers and names; RunError if the file cannot be written."""
        save_checkpoint(Path(path), self._to_data())

    def _to_data(self) -> dict[str, Any]:
        """What a file holds."""
        return {
            "kind": type(self).__name__,
            "agent": describe(self.policy, self._known),
            "parameters": {name: value.cpu().clone() for name, value in self.parameters.items()},  # of one task alone
            "constants": {name: value.cpu() for name, value in constants_of(self.policy).items()},
            "observation_shape": list(self.observation_shape),
            "action_space": _space_to_data(self.action_space),
        }

    @classmethod
    def load(cls, path: Path | str, policy: nn.Module | None = None) -> Self:
        """Read an agent, executing nothing that the file holds; neither the environment nor the run is needed.

        Args:
            path: what `save` wrote.
            policy: a module like the one that was saved, needed only for one that is not of `metarl.rl.policies`.

        Raises:
            RunError: a file that is no agent's, or whose policy is not of `metarl.rl.policies` and not given.
        """
        state, kind = load_checkpoint(Path(path)), cls.__name__
        if not isinstance(state, dict) or "agent" not in state:
            raise RunError(f"{path} holds no agent; allowed: what {kind}.save or experiments/adapt.py wrote")
        if (found := state.get("kind", Agent.__name__)) != kind:
            raise RunError(f"{path}: it was saved by {in_short(found)}; allowed: what {kind}.save wrote")
        try:
            space, shape = _space_from_data(state.get("action_space")), _shape_from_data(state.get("observation_shape"))
            parameters: Any = state.get("parameters")
            require(isinstance(parameters, dict), "parameters", parameters, "a dict of tensors")
        except ValueError as error:
            raise RunError(f"{path}: {error}") from error
        if policy is None:
            try:
                policy = from_description(state["agent"], Box(-np.inf, np.inf, shape), space, cls._known)
            except ValueError as error:
                raise RunError(f"{path}: {error}; allowed: {kind}.load(path, policy)") from error
        try:
            require_alike("parameters", parameters, parameters_of(policy))
            restore_constants(policy, state.get("constants"))
            agent = cls(policy, parameters, space, shape)
            agent._restore(state)
        except ValueError as error:
            raise RunError(f"{path}: {error}") from error
        return agent

    def _restore(self, state: dict[str, Any]) -> None:
        """Take over what else a file holds; ValueError for content that does not fit."""


def _space_to_data(space: gymnasium.Space) -> dict[str, Any]:
    if isinstance(space, Discrete):
        return {"n": int(space.n), "start": int(space.start)}
    assert isinstance(space, Box), "action_distribution_for takes no other"
    return {"low": space.low.tolist(), "high": space.high.tolist(), "dtype": str(space.dtype)}


def _space_from_data(data: Any) -> gymnasium.Space:
    """The action space; ValueError for other content than `_space_to_data` makes."""
    try:
        if "n" in data:
            return Discrete(data["n"], start=data["start"])
        dtype: Any = np.dtype(str(data["dtype"]))
        return Box(np.array(data["low"], dtype), np.array(data["high"], dtype), dtype=dtype.type)
    except Exception as error:  # numpy and gymnasium may raise anything
        allowed = "a dict with n and start, or with low, high and dtype"
        raise ValueError(f"action_space = {in_short(data)}; allowed: {allowed}") from error


def _shape_from_data(data: Any) -> tuple[int, ...]:
    require(isinstance(data, list), "observation_shape", data, "a list of sizes")
    for size in data:
        require_whole("observation_shape", size)
    return tuple(data)
