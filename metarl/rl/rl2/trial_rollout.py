"""Playing trials: all tasks in lockstep, episode after episode, with a memory that is kept from one to the next."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from metarl.core.randomness import RolloutKey
from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.episodes import Episodes
from metarl.rl.rl2.trials import step_inputs
from metarl.rl.rollout import RolloutRecord
from metarl.rl.task_distribution import Tasks


@dataclass(frozen=True)
class TrialRollout:
    """Plays a trial in every lane of a batch of environments, all with the same policy.

    A lane whose episode has ended waits until those of all others have, its memory as it is; then the next episode
    begins in all lanes. Steps of waiting lanes count nowhere.

    Attributes:
        policy: maps inputs (B, L, I) and a memory to distribution parameters, values and the next memory, see
            `metarl.rl.rl2.policies`.
        action_distribution: the family that the parameters belong to.
        horizon: T, the most time steps of an episode.
    """

    policy: nn.Module
    action_distribution: ActionDistribution
    horizon: int

    @torch.no_grad()
    def __call__(
        self, envs: VectorEnv, tasks: Tasks, key: RolloutKey, episodes: int, device: torch.device | str = "cpu"
    ) -> tuple[Episodes, Tensor]:
        """Play a trial of each task.

        Args:
            envs: M lanes, lane m for task m.
            tasks: dict of arrays (M, ...).
            key: names the randomness.
            episodes: E, of each trial.
            device: of the policy.

        Returns:
            M x E episodes, and the policy's values in each step, (M, T, E).

        Raises:
            NonFiniteError: naming task, episode and time step of the first observation, action, its log-probability or
                reward that is not finite.
        """
        lanes = _Lanes(self, envs, torch.device(device))
        played = [lanes.play(tasks, replace(key, first_episode=key.first_episode + e)) for e in range(episodes)]
        joined = played[0][0]
        for other, _ in played[1:]:
            joined = joined.joined(other)
        time_steps = joined.valid.shape[1]
        values = torch.zeros(envs.num_envs, self.horizon, episodes, device=device)
        for e, (_, of_episode) in enumerate(played):
            values[:, :, e] = of_episode
        return joined, torch.where(joined.valid, values[:, :time_steps], 0)


class _Lanes:
    """What is carried from step to step of M trials, and over their episodes."""

    def __init__(self, rollout: TrialRollout, envs: VectorEnv, device: torch.device):
        self._rollout, self._envs, self._device = rollout, envs, device
        count = envs.num_envs
        self._memory: Tensor | None = None
        self._actions = torch.zeros(count, rollout.action_distribution.encoded_size, device=device)
        self._rewards, self._ended = (torch.zeros(count, device=device) for _ in range(2))

    def play(self, tasks: Tasks, key: RolloutKey) -> tuple[Episodes, Tensor]:
        """Play one episode in every lane; return M x 1 episodes, and the values in each step, (M, T)."""
        family, horizon, count = self._rollout.action_distribution, self._rollout.horizon, self._envs.num_envs
        noise = torch.from_numpy(family.noise(key, count, horizon, 1)).to(self._device)  # (M, T, 1, size)
        record = RolloutRecord((count, 1), horizon, family.parameter_size, self._device)
        values = torch.zeros(count, horizon, device=self._device)
        raw, _ = self._envs.reset(seed=key.reset_seeds(count, 1), options={"tasks": tasks})  # type: ignore[arg-type]
        record.begin((slice(0, count), slice(0, 1)), raw)
        running = np.ones(count, bool)
        for t in range(horizon):
            dist_params, values[:, t] = self._see(record.seen.flatten(1), running)
            actions = family.sample(dist_params, noise[:, t, 0])
            record.acted(t, dist_params.unsqueeze(1), actions.unsqueeze(1))
            flat_actions = actions.cpu().numpy()
            if not np.isfinite(flat_actions).all():
                record.check_actions(t, key)
                flat_actions = np.nan_to_num(flat_actions)  # of episodes that have ended
            raw, rewards, terminations, truncations, infos = self._envs.step(family.to_environment(flat_actions))
            all_ended = record.stepped(t, raw, rewards, terminations, truncations, infos)
            ended = terminations | truncations | (t == horizon - 1)
            self._brought(running, family.encode(actions), rewards, ended)
            running = running & ~ended
            if all_ended:
                break
        return record.episodes(t + 1, family, key), values

    def _see(self, observations: Tensor, running: np.ndarray) -> tuple[Tensor, Tensor]:
        """Take a step of the policy; the memory of a waiting lane stays as it is."""
        inputs = step_inputs(observations, self._actions, self._rewards, self._ended)
        dist_params, values, memory = self._rollout.policy(inputs.unsqueeze(1), self._memory)
        if self._memory is not None and not running.all():
            memory = torch.where(self._on_device(running).view(-1, *[1] * (memory.ndim - 1)), memory, self._memory)
        self._memory = memory
        return dist_params.squeeze(1), values.squeeze(1)

    def _brought(self, running: np.ndarray, actions: Tensor, rewards: np.ndarray, ended: np.ndarray) -> None:
        """Keep what the step brought for the next input, of the lanes whose episode was going on."""
        went = self._on_device(running)
        self._actions = torch.where(went.unsqueeze(1), actions, self._actions)
        self._rewards = torch.where(went, self._on_device(rewards.astype(np.float32)), self._rewards)
        self._ended = torch.where(went, self._on_device(ended.astype(np.float32)), self._ended)

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)
