"""Playing trials: all tasks in lockstep, episode after episode, with a memory that is kept from one to the next."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from metarl.core.randomness import RolloutKey
from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.episodes import Episodes
from metarl.rl.rl2.trial_memory import TrialMemory
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
        carried = TrialMemory(self.policy, self.action_distribution, envs.num_envs, device)
        keys = [replace(key, first_episode=key.first_episode + e) for e in range(episodes)]
        played = [self._play_episode(envs, tasks, of, carried, torch.device(device)) for of in keys]
        joined = played[0][0]
        for other, _ in played[1:]:
            joined = joined.joined(other)
        time_steps = joined.valid.shape[1]
        values = torch.zeros(envs.num_envs, self.horizon, episodes, device=device)
        for e, (_, of_episode) in enumerate(played):
            values[:, :, e] = of_episode
        return joined, torch.where(joined.valid, values[:, :time_steps], 0)

    def _play_episode(
        self, envs: VectorEnv, tasks: Tasks, key: RolloutKey, carried: TrialMemory, device: torch.device
    ) -> tuple[Episodes, Tensor]:
        """Play one episode in every lane; return M x 1 episodes, and the values in each step, (M, T)."""
        family, horizon, count = self.action_distribution, self.horizon, envs.num_envs
        noise = torch.from_numpy(family.noise(key, count, horizon, 1)).to(device)  # (M, T, 1, size)
        record = RolloutRecord((count, 1), horizon, family.parameter_size, device)
        values = torch.zeros(count, horizon, device=device)
        raw, _ = envs.reset(seed=key.reset_seeds(count, 1), options={"tasks": tasks})  # type: ignore[arg-type]
        record.begin((slice(0, count), slice(0, 1)), raw)
        running = torch.ones(count, dtype=torch.bool, device=device)
        for t in range(horizon):
            dist_params, values[:, t] = carried.see(record.seen.flatten(1), running)
            actions = family.sample(dist_params, noise[:, t, 0])
            record.acted(t, dist_params.unsqueeze(1), actions.unsqueeze(1))
            flat_actions = actions.cpu().numpy()
            if not np.isfinite(flat_actions).all():
                record.check_actions(t, key)
                flat_actions = np.nan_to_num(flat_actions)  # of episodes that have ended
            raw, rewards, terminations, truncations, infos = envs.step(family.to_environment(flat_actions))
            all_ended = record.stepped(t, raw, rewards, terminations, truncations, infos)
            ended = torch.from_numpy(terminations | truncations | (t == horizon - 1)).to(device)
            carried.keep(actions, torch.from_numpy(rewards.astype(np.float32)).to(device), ended, running)
            running = running & ~ended
            if all_ended:
                break
        return record.episodes(t + 1, family, key), values
