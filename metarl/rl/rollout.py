"""Rollouts: all tasks and episodes in lockstep, one batched forward pass per time step."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from metarl.core.distributed import ALONE, Processes
from metarl.core.errors import NonFiniteError
from metarl.core.parameters import Parameters, call_per_task
from metarl.core.randomness import RolloutKey
from metarl.core.recording import RecordedModule
from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.episodes import Episodes
from metarl.rl.task_distribution import Tasks

_RECORD_FROM = 50  # time steps; recording a policy takes as long as it saves in some 50 of them


@dataclass(frozen=True)
class Rollout:
    """Plays one episode in every lane of a batch of environments, each task with its own parameters.

    Attributes:
        policy: maps observations (batch, ...) to the parameters of an action distribution (batch, P); not changed by
            anybody else.
        action_distribution: the family that the P parameters belong to.
        horizon: T, the most time steps of an episode.
        processes: that play other tasks at the same time.
    """

    policy: nn.Module
    action_distribution: ActionDistribution
    horizon: int
    processes: Processes = ALONE
    _recorded: RecordedModule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_recorded", RecordedModule(self.policy))

    def of(self, processes: Processes) -> "Rollout":
        """The same rollout, recordings included, for tasks that these processes divide."""
        shared = replace(self, processes=processes)
        object.__setattr__(shared, "_recorded", self._recorded)
        return shared

    @torch.no_grad()
    def __call__(self, envs: VectorEnv, parameters: Parameters, tasks: Tasks, key: RolloutKey) -> Episodes:
        """Play the episodes.

        Args:
            envs: N = M * E lanes; lane m * E + e is episode e of task m. Whether it autoresets does not matter:
                nothing after the end of an episode is kept.
            parameters: of the policy, (M, ...), on the device that acts.
            tasks: dict of arrays (M, ...).
            key: names the randomness.

        Returns:
            M x E episodes on the device of the parameters, cut after the longest episode of all processes.

        Raises:
            NonFiniteError: naming task, episode and time step of the first observation, action, its log-probability or
                reward that is not finite.
        """
        # all noise of the rollout, named by task and episode
        device = next(iter(parameters.values())).device
        num_tasks = len(next(iter(tasks.values())))
        lanes = (num_tasks, envs.num_envs // num_tasks)  # (M, E)
        family = self.action_distribution
        noise = torch.from_numpy(family.noise(key, lanes[0], self.horizon, lanes[1])).to(device)  # (M, T, E, size)

        # an episode begins in every lane
        seeds = key.reset_seeds(*lanes)
        raw, _ = envs.reset(seed=seeds, options={"tasks": tasks})  # type: ignore[arg-type]  # gymnasium: one per lane
        observation = _to_device(raw, lanes, device)  # (M, E, ...)
        forward = self._forward(parameters, observation)
        record = _Record(lanes, self.horizon, family.parameter_size, raw.shape[1:], device)

        # one batched forward pass and one step of all environments per time step
        for t in range(self.horizon):
            dist_params = forward(observation)  # (M, E, P)
            action = family.sample(dist_params, noise[:, t])
            record.acted(t, observation, dist_params, action)
            flat_action = action.cpu().numpy().reshape(envs.num_envs, *action.shape[2:])  # (N, ...)
            if not np.isfinite(flat_action).all():
                record.check_actions(t, key)
                flat_action = np.nan_to_num(flat_action)  # of episodes that have ended
            raw, *outcome = envs.step(family.to_environment(flat_action))
            if record.stepped(t, raw, *outcome):
                break
            observation = _to_device(raw, lanes, device)
        return record.episodes(self.processes.all_reduce_max(t + 1), family, key)

    def _forward(self, parameters: Parameters, observation: Tensor) -> Callable[[Tensor], Tensor]:
        if self.horizon < _RECORD_FROM:
            return partial(call_per_task, self.policy, parameters)
        return self._recorded.bind(parameters, observation)


class _Record:
    """What happens in a rollout, step by step.

    Args:
        lanes: (M, E).
        horizon: T.
        parameter_size: P.
        observation_shape: of one observation.
        device: of what the policy sees and puts out.
    """

    def __init__(
        self,
        lanes: tuple[int, int],
        horizon: int,
        parameter_size: int,
        observation_shape: tuple[int, ...],
        device: torch.device,
    ):
        num_tasks, episodes_per_task = lanes
        shape = (num_tasks, horizon, episodes_per_task)
        self._lanes, self._device = lanes, device
        self._observations = torch.zeros(*shape, *observation_shape, device=device)
        self._dist_params = torch.zeros(*shape, parameter_size, device=device)
        self._actions: Tensor | None = None
        self._rewards = np.zeros(shape, np.float32)
        self._valid = np.zeros(shape, bool)
        self._terminated = np.zeros(lanes, bool)
        self._failed = np.zeros(lanes, bool)
        self._succeeded: np.ndarray | None = None
        self._running = np.ones(lanes, bool)
        self._final = np.zeros((*lanes, *observation_shape), np.float32)

    def acted(self, t: int, observation: Tensor, dist_params: Tensor, action: Tensor) -> None:
        """Note what the policy saw, put out and did in time step t, (M, E, ...) each."""
        if self._actions is None:
            num_tasks, horizon, _ = self._valid.shape
            shape = (num_tasks, horizon, *action.shape[1:])
            self._actions = torch.zeros(shape, dtype=action.dtype, device=self._device)
        self._observations[:, t], self._dist_params[:, t], self._actions[:, t] = observation, dist_params, action
        self._valid[:, t] = self._running

    def stepped(
        self,
        t: int,
        raw: np.ndarray,
        rewards: np.ndarray,
        terminations: np.ndarray,
        truncations: np.ndarray,
        infos: dict[str, Any],
    ) -> bool:
        """Note what the environments returned, (N, ...) each; True once no episode goes on."""
        running, lanes = self._running, self._lanes
        self._rewards[:, t] = np.where(running, rewards.reshape(lanes), 0.0)
        ended = running & (terminations | truncations).reshape(lanes)
        self._terminated |= running & terminations.reshape(lanes)
        if "blown_up" in infos:
            self._failed |= running & infos["blown_up"].reshape(lanes)
        if (success := _success(infos)) is not None:
            earlier = False if self._succeeded is None else self._succeeded
            self._succeeded = running & success.reshape(lanes) | earlier
        at_horizon = t == self._valid.shape[1] - 1
        last = running if at_horizon else ended
        if last.any():
            self._final[last] = _final_observations(raw, infos).reshape(self._final.shape)[last]
        self._running = running & ~ended
        return at_horizon or not self._running.any()

    def check_actions(self, t: int, key: RolloutKey) -> None:
        """Raise NonFiniteError if an observation or action of a valid step up to t is not finite."""
        assert self._actions is not None, "an action was noted"
        valid = torch.from_numpy(self._valid[:, : t + 1])
        _check_finite("observation", self._observations[:, : t + 1], valid, key)
        _check_finite("action", self._actions[:, : t + 1], valid, key)

    def episodes(self, time_steps: int, action_distribution: ActionDistribution, key: RolloutKey) -> Episodes:
        """Return the episodes, cut after so many time steps."""
        assert self._actions is not None, "a horizon is at least 1"
        valid = torch.from_numpy(self._valid[:, :time_steps]).to(self._device)
        stores = [store[:, :time_steps] for store in (self._observations, self._dist_params, self._actions)]
        if not valid.all():
            for store in stores:  # 0 * nan, of a lane that has ended, would still be nan
                store.masked_fill_(~valid.view(*valid.shape, *[1] * (store.ndim - 3)), 0)
        observations, dist_params, actions = stores
        episodes = Episodes(
            observations=observations.contiguous(),
            actions=actions.contiguous(),
            dist_params=dist_params.contiguous(),
            log_probs=action_distribution.log_prob(dist_params, actions),
            rewards=torch.from_numpy(self._rewards[:, :time_steps]).to(self._device),
            valid=valid,
            terminated=torch.from_numpy(self._terminated).to(self._device),
            final_observations=torch.from_numpy(self._final).to(self._device),
            failed=torch.from_numpy(self._failed).to(self._device),
            succeeded=None if self._succeeded is None else torch.from_numpy(self._succeeded).to(self._device),
        )
        _check_finite("reward", episodes.rewards, episodes.valid, key)
        _check_finite("observation", episodes.observations, episodes.valid, key)
        _check_finite("log-probability of the action", episodes.log_probs, episodes.valid, key)
        return episodes


def _to_device(raw: np.ndarray, lanes: tuple[int, int], device: torch.device) -> Tensor:
    """Observations (N, ...) as a float32 tensor (M, E, ...) that shares no memory with the environment."""
    return torch.from_numpy(raw.astype(np.float32)).view(*lanes, *raw.shape[1:]).to(device)


def _final_observations(raw: np.ndarray, infos: dict) -> np.ndarray:
    """Observations after the last step, also where an autoreset has already replaced them by those of a new episode."""
    if "final_obs" not in infos:
        return raw
    return np.stack([now if final is None else final for now, final in zip(raw, infos["final_obs"], strict=True)])


def _success(infos: dict) -> np.ndarray | None:
    """Lanes whose step succeeded, also where an autoreset has moved an episode's last info away; None if not told."""
    told = [np.asarray(place["success"], bool) for place in (infos, infos.get("final_info", {})) if "success" in place]
    return np.logical_or.reduce(told) if told else None


def _check_finite(name: str, values: Tensor, valid: Tensor, key: RolloutKey) -> None:
    broken = ~torch.isfinite(values.flatten(3).sum(-1) if values.ndim > 3 else values) & valid.to(values.device)
    if broken.any():
        task, time_step, episode = (int(i) for i in broken.nonzero()[0])
        raise NonFiniteError(
            f"{name} is not finite in {key.purpose} of iteration {key.iteration}: "
            f"task {key.first_task + task}, episode {key.first_episode + episode}, step {time_step}"
        )
