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
from metarl.core.validation import require
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
    def __call__(
        self,
        envs: VectorEnv,
        parameters: Parameters,
        tasks: Tasks,
        key: RolloutKey,
        episodes_per_task: int | None = None,
    ) -> Episodes:
        """Play the episodes.

        Args:
            envs: N lanes. With N = M * E, lane m * E + e is episode e of task m. With fewer the episodes are played in
                `rounds`, and are the same. Whether the environments autoreset does not matter: nothing after the end
                of an episode is kept.
            parameters: of the policy, (M, ...), on the device that acts.
            tasks: dict of arrays (M, ...).
            key: names the randomness.
            episodes_per_task: E; None for one in every lane.

        Returns:
            M x E episodes on the device of the parameters, cut after the longest episode of all processes.

        Raises:
            NonFiniteError: naming task, episode and time step of the first observation, action, its log-probability or
                reward that is not finite.
        """
        # all noise of the rollout, named by task and episode
        device = next(iter(parameters.values())).device
        num_tasks = len(next(iter(tasks.values())))
        lanes = (num_tasks, episodes_per_task or envs.num_envs // num_tasks)  # (M, E)
        family = self.action_distribution
        noise = torch.from_numpy(family.noise(key, lanes[0], self.horizon, lanes[1])).to(device)  # (M, T, E, size)
        seeds = np.reshape(key.reset_seeds(*lanes), lanes)

        record, time_steps = RolloutRecord(lanes, self.horizon, family.parameter_size, device), 0
        forward: Callable[[Tensor], Tensor] | None = None
        for place in rounds(*lanes, envs.num_envs):
            # an episode begins in every lane
            own = {name: values[place[0]] for name, values in tasks.items()}
            raw, _ = envs.reset(seed=seeds[place].flatten().tolist(), options={"tasks": own})  # type: ignore[arg-type]
            record.begin(place, raw)
            forward = forward or self._forward(parameters, record.seen)
            time_steps = max(time_steps, self._play(envs, forward, record, noise, key))
        return record.episodes(self.processes.all_reduce_max(time_steps), family, key)

    def _play(
        self,
        envs: VectorEnv,
        forward: Callable[[Tensor], Tensor],
        record: "RolloutRecord",
        noise: Tensor,
        key: RolloutKey,
    ) -> int:
        """Play to the end of the episodes that have begun; return how many time steps that took.

        The policy acts for all M x E lanes even where a round has fewer, because products of matrices of another size
        may be rounded otherwise.
        """
        family = self.action_distribution
        for t in range(self.horizon):
            # one batched forward pass and one step of all environments per time step
            dist_params = forward(record.seen)  # (M, E, P)
            action = family.sample(dist_params, noise[:, t])
            record.acted(t, dist_params, action)
            flat_action = action[record.place].cpu().numpy().reshape(envs.num_envs, *action.shape[2:])  # (N, ...)
            if not np.isfinite(flat_action).all():
                record.check_actions(t, key)
                flat_action = np.nan_to_num(flat_action)  # of episodes that have ended
            if record.stepped(t, *envs.step(family.to_environment(flat_action))):
                break
        return t + 1

    def _forward(self, parameters: Parameters, observation: Tensor) -> Callable[[Tensor], Tensor]:
        if self.horizon < _RECORD_FROM:
            return partial(call_per_task, self.policy, parameters)
        return self._recorded.bind(parameters, observation)


def rounds(num_tasks: int, episodes_per_task: int, num_envs: int) -> list[tuple[slice, slice]]:
    """The tasks and the episodes of each round in which N lanes play M x E episodes.

    Rounds have all episodes of some tasks or, where there are fewer lanes than that, some episodes of one task.
    ValueError unless all rounds have as many.
    """
    tasks_at_once, episodes_at_once = max(1, num_envs // episodes_per_task), min(num_envs, episodes_per_task)
    whole = num_tasks % tasks_at_once == 0 and episodes_per_task % episodes_at_once == 0
    lanes = f"lanes for {num_tasks} tasks x {episodes_per_task} episodes"
    require(whole and tasks_at_once * episodes_at_once == num_envs, lanes, num_envs, "equal rounds")
    return [
        (slice(task, task + tasks_at_once), slice(episode, episode + episodes_at_once))
        for task in range(0, num_tasks, tasks_at_once)
        for episode in range(0, episodes_per_task, episodes_at_once)
    ]


class RolloutRecord:
    """What happens in a rollout, step by step.

    Args:
        lanes: (M, E).
        horizon: T.
        parameter_size: P.
        device: of what the policy sees and puts out.

    Attributes:
        place: the tasks and the episodes of the present round.
        seen: the present observations, (M, E, ...), of which those outside `place` mean nothing.
    """

    place: tuple[slice, slice]
    seen: Tensor

    def __init__(self, lanes: tuple[int, int], horizon: int, parameter_size: int, device: torch.device):
        num_tasks, episodes_per_task = lanes
        shape = (num_tasks, horizon, episodes_per_task)
        self._lanes, self._device = lanes, device
        self._dist_params = torch.zeros(*shape, parameter_size, device=device)
        self._observations: Tensor | None = None
        self._actions: Tensor | None = None
        self._rewards = np.zeros(shape, np.float32)
        self._valid = np.zeros(shape, bool)
        self._terminated = np.zeros(lanes, bool)
        self._failed = np.zeros(lanes, bool)
        self._succeeded: np.ndarray | None = None

    def begin(self, place: tuple[slice, slice], raw: np.ndarray) -> None:
        """Begin a round in some of the lanes, with the observations (N, ...) of a reset."""
        self.place, self._running = place, np.ones(tuple(part.stop - part.start for part in place), bool)
        if self._observations is None:
            shape = raw.shape[1:]
            self._observations = torch.zeros(*self._valid.shape, *shape, device=self._device)
            self._final = np.zeros((*self._lanes, *shape), np.float32)
            self.seen = torch.zeros(*self._lanes, *shape, device=self._device)
        self._see(raw)

    def acted(self, t: int, dist_params: Tensor, action: Tensor) -> None:
        """Note what the policy has seen, put out and done in time step t, (M, E, ...) each."""
        assert self._observations is not None, "a round has begun"
        if self._actions is None:
            num_tasks, horizon, _ = self._valid.shape
            shape = (num_tasks, horizon, *action.shape[1:])
            self._actions = torch.zeros(shape, dtype=action.dtype, device=self._device)
        at = (self.place[0], t, self.place[1])
        self._observations[at] = self.seen[self.place]
        self._dist_params[at], self._actions[at] = dist_params[self.place], action[self.place]
        self._valid[at] = self._running

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
        running, lanes, place = self._running, self._running.shape, self.place
        self._rewards[place[0], t, place[1]] = np.where(running, rewards.reshape(lanes), 0.0)
        ended = running & (terminations | truncations).reshape(lanes)
        self._terminated[place] |= running & terminations.reshape(lanes)
        if "blown_up" in infos:
            self._failed[place] |= running & infos["blown_up"].reshape(lanes)
        if (success := _success(infos)) is not None:
            if self._succeeded is None:
                self._succeeded = np.zeros(self._lanes, bool)
            self._succeeded[place] |= running & success.reshape(lanes)
        at_horizon = t == self._valid.shape[1] - 1
        last = running if at_horizon else ended
        if last.any():
            finals = self._final[place]  # a view
            finals[last] = _final_observations(raw, infos).reshape(finals.shape)[last]
        self._running = running & ~ended
        if at_horizon or not self._running.any():
            return True
        self._see(raw)
        return False

    def _see(self, raw: np.ndarray) -> None:
        part = _to_device(raw, self._running.shape, self._device)
        if self._running.shape == self._lanes:
            self.seen = part
        else:
            self.seen[self.place] = part

    def check_actions(self, t: int, key: RolloutKey) -> None:
        """Raise NonFiniteError if an observation or action of a valid step up to t is not finite."""
        assert self._observations is not None, "a round has begun"
        assert self._actions is not None, "an action was noted"
        valid = torch.from_numpy(self._valid[:, : t + 1])
        _check_finite("observation", self._observations[:, : t + 1], valid, key)
        _check_finite("action", self._actions[:, : t + 1], valid, key)

    def episodes(self, time_steps: int, action_distribution: ActionDistribution, key: RolloutKey) -> Episodes:
        """Return the episodes, cut after so many time steps."""
        assert self._observations is not None, "there is at least one round"
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


def _to_device(raw: np.ndarray, lanes: tuple[int, ...], device: torch.device) -> Tensor:
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
