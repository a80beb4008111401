"""Collecting episodes: all tasks and episodes in lockstep, one batched forward per step."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from metarl.core.distributed import ALONE, Processes
from metarl.core.errors import NonFiniteError
from metarl.core.parameters import Parameters, call_per_task
from metarl.core.randomness import RolloutKey
from metarl.core.recording import capture, one_launch
from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.episodes import Episodes
from metarl.rl.task_distribution import Tasks

_CAPTURE_FROM = 50  # steps; recording a policy takes as long as it saves in some 50 steps


def collect(
    envs: VectorEnv,
    policy: nn.Module,
    distribution: ActionDistribution,
    parameters: Parameters,
    tasks: Tasks,
    horizon: int,
    key: RolloutKey,
    steps: int,
    processes: Processes = ALONE,
) -> Episodes:
    """Run rounds of `rollout` until every task has `steps` valid steps, all in whole episodes.

    So did the code behind the MAML paper count: where episodes end early, a task gets more of them.
    """
    episodes = rollout(envs, policy, distribution, parameters, tasks, horizon, key, processes)
    while processes.most(int((episodes.lengths.sum(dim=1) < steps).any())):
        key = replace(key, first_episode=episodes.valid.shape[2])
        episodes = episodes.joined(rollout(envs, policy, distribution, parameters, tasks, horizon, key, processes))
    return episodes.up_to(steps, processes)


@torch.no_grad()
def rollout(
    envs: VectorEnv,
    policy: nn.Module,
    distribution: ActionDistribution,
    parameters: Parameters,
    tasks: Tasks,
    horizon: int,
    key: RolloutKey,
    processes: Processes = ALONE,
) -> Episodes:
    """Run one episode in every lane, each task with its own parameters.

    Args:
        envs: N = M * E lanes; lane m * E + e is episode e of task m. Whether it autoresets does not matter: nothing
            after the end of an episode is kept.
        policy: module mapping (batch, O) to (batch, P).
        distribution: the family that the P parameters belong to.
        parameters: of the policy, with a leading axis of M tasks, on the device that acts.
        tasks: dict of arrays (M, ...).
        horizon: T, the most steps taken.
        key: names the randomness.
        processes: that run other tasks at the same time.

    Returns:
        Episodes on the device of the parameters, cut after the longest episode of all processes.

    Raises:
        NonFiniteError: naming task, episode and step of the first observation, action, its log-probability or reward
            that is not finite.
    """
    device = next(iter(parameters.values())).device
    count = len(next(iter(tasks.values())))
    per_task = envs.num_envs // count
    lanes = (count, per_task)
    noise = torch.from_numpy(distribution.noise(key, count, horizon, per_task)).to(device)

    seeds = key.reset_seeds(count, per_task)
    raw, _ = envs.reset(seed=seeds, options={"tasks": tasks})  # type: ignore[arg-type]  # gymnasium: one per lane
    observation_shape = raw.shape[1:]
    observations = torch.zeros(count, horizon, per_task, *observation_shape, device=device)
    parameter_store = torch.zeros(count, horizon, per_task, distribution.parameter_size, device=device)
    rewards = np.zeros((count, horizon, per_task), np.float32)
    valid = np.zeros((count, horizon, per_task), bool)
    terminated = np.zeros(lanes, bool)
    failed = np.zeros(lanes, bool)
    succeeded: np.ndarray | None = None
    running = np.ones(lanes, bool)
    final = np.zeros((*lanes, *observation_shape), np.float32)

    ferry = _Ferry(device)

    def to_device(raw: np.ndarray) -> Tensor:
        return ferry.to_device(raw.reshape(*lanes, *observation_shape))

    forward: Callable[[Tensor], Tensor] = partial(call_per_task, policy, parameters)
    if horizon >= _CAPTURE_FROM:
        forward = capture(policy, parameters, to_device(raw))

    def act(observation: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        output = forward(observation)
        return output, distribution.sample(output, noise)

    step: Callable[..., tuple[Tensor, ...]] = act
    if horizon >= _CAPTURE_FROM and _on_gpu(device):
        step = one_launch(act, to_device(raw), noise[:, 0])
    actions: Tensor | None = None
    for t in range(horizon):
        observation = to_device(raw)
        output, action = step(observation, noise[:, t])
        if actions is None:
            actions = torch.zeros(count, horizon, *action.shape[1:], dtype=action.dtype, device=device)
        observations[:, t], parameter_store[:, t], actions[:, t] = observation, output, action

        valid[:, t] = running
        flat_action = ferry.to_host(action).reshape(envs.num_envs, *action.shape[2:])
        if not np.isfinite(flat_action).all():
            _check_finite("observation", observations[:, : t + 1], torch.from_numpy(valid[:, : t + 1]), key)
            _check_finite("action", actions[:, : t + 1], torch.from_numpy(valid[:, : t + 1]), key)
            flat_action = np.nan_to_num(flat_action)  # of episodes that have ended
        raw, reward, terminations, truncations, infos = envs.step(distribution.to_environment(flat_action))
        rewards[:, t] = np.where(running, reward.reshape(lanes), 0.0)
        ended = running & (terminations | truncations).reshape(lanes)
        terminated |= running & terminations.reshape(lanes)
        if "blown_up" in infos:
            failed |= running & infos["blown_up"].reshape(lanes)
        if (success := _success(infos)) is not None:
            succeeded = running & success.reshape(lanes) | (False if succeeded is None else succeeded)
        if ended.any() or t == horizon - 1:
            last = ended | (running if t == horizon - 1 else False)
            final[last] = _final_observations(raw, infos).reshape(*lanes, *observation_shape)[last]
            running &= ~ended
            if not running.any():
                break

    assert actions is not None, "a horizon is at least 1"
    steps = processes.most(t + 1)
    on_device = torch.from_numpy(valid[:, :steps]).to(device)
    if not valid[:, :steps].all():
        for store in (observations, parameter_store, actions):  # 0 * nan, of a lane that has ended, would still be nan
            store[:, :steps].masked_fill_(~on_device.view(*on_device.shape, *[1] * (store.ndim - 3)), 0)
    episodes = Episodes(
        observations=observations[:, :steps].contiguous(),
        actions=actions[:, :steps].contiguous(),
        distribution=parameter_store[:, :steps].contiguous(),
        log_probs=distribution.log_prob(parameter_store[:, :steps], actions[:, :steps]),
        rewards=torch.from_numpy(rewards[:, :steps]).to(device),
        valid=on_device,
        terminated=torch.from_numpy(terminated).to(device),
        final_observations=torch.from_numpy(final).to(device),
        failed=torch.from_numpy(failed).to(device),
        succeeded=None if succeeded is None else torch.from_numpy(succeeded).to(device),
    )
    _check_finite("reward", episodes.rewards, episodes.valid, key)
    _check_finite("observation", episodes.observations, episodes.valid, key)
    _check_finite("log-probability of the action", episodes.log_probs, episodes.valid, key)
    return episodes


class _Ferry:
    """Carries one array per step to the device and one back: on a GPU through memory that the device can reach."""

    def __init__(self, device: torch.device):
        self._device = device
        self._there: Tensor | None = None
        self._back: Tensor | None = None

    def to_device(self, values: np.ndarray) -> Tensor:
        """As float32; the tensor holds until the next call."""
        if self._there is None:
            self._there = self._memory(values.shape, torch.float32)
        self._there.copy_(torch.from_numpy(np.ascontiguousarray(values)))
        return self._there.to(self._device, non_blocking=True)

    def to_host(self, values: Tensor) -> np.ndarray:
        """Wait for the values; an array of its own."""
        if self._back is None:
            self._back = self._memory(values.shape, values.dtype)
        self._back.copy_(values, non_blocking=True)
        if _on_gpu(self._device):
            torch.cuda.current_stream(self._device).synchronize()
        return self._back.numpy().copy()

    def _memory(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self._device.type == "cuda")


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


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
        task, step, episode = (int(i) for i in broken.nonzero()[0])
        raise NonFiniteError(
            f"{name} is not finite in {key.purpose} of iteration {key.iteration}: "
            f"task {key.first_task + task}, episode {key.first_episode + episode}, step {step}"
        )
