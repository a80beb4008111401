"""Small things with known answers that tests share."""

from collections.abc import Sequence

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from metarl.core.parameters import Parameters, call_per_task, expand_over_tasks, parameters_of
from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.episodes import Episodes, Samples


class Corridor(gymnasium.Env):
    """A counter that starts at a random number; task `length` says after how many steps it terminates.

    Discrete actions: the reward is the action times the step number, so every step is recognisable.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, lane: int = 0, lanes: int = 1, broken: str = ""):
        self.lane, self.lanes, self.broken, self.episodes = lane, lanes, broken, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if options:
            lengths = options["tasks"]["length"]
            self.length = int(lengths[self.lane * len(lengths) // self.lanes])
        self.start, self.steps = self.np_random.random(), 0
        self.episodes = 1 if options else self.episodes + 1
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        reward = float(action * self.steps)
        if self.broken == "reward" and self.lane == 3 and self.steps == 2:
            reward = np.nan
        succeeded = self.steps >= 4 or self.episodes > 1
        told = self.broken == "reports success" or (self.broken == "reports success alone" and succeeded)
        infos = {"success": succeeded} if told else {}
        if self.broken == "blows up afterwards":
            infos = {"blown_up": self.episodes > 1 or self.steps > self.length}
        ended = self.steps >= self.length
        cut = self.broken == "cuts its first episode" and self.length == 2 and self.episodes == 1
        return self._observation(), reward, ended and not cut, ended and cut, infos

    def _observation(self):
        broken = self.broken == "observation" and self.lane == 2 and self.steps == 1
        return np.array([np.inf if broken else self.start, self.steps])


class CorridorTasks:
    """A distribution over corridor lengths, as a user would write one around gymnasium's own vector environment."""

    name, dynamics = "corridor", "probe"
    task_space = {"length": gymnasium.spaces.Box(2, 8, (), np.int64)}  # noqa: RUF012
    observation_space, action_space = Corridor.observation_space, Corridor.action_space

    def __init__(self, horizon: int = 6, autoreset: AutoresetMode = AutoresetMode.NEXT_STEP, broken: str = ""):
        self.horizon, self.autoreset, self.broken = horizon, autoreset, broken

    def sample(self, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"length": rng.integers(2, 9, count)}

    def make(self, num_envs: int, threads: int = 1) -> SyncVectorEnv:
        makers = [lambda lane=lane: Corridor(lane, num_envs, self.broken) for lane in range(num_envs)]
        return SyncVectorEnv(makers, autoreset_mode=self.autoreset)


class TinyGaussian(nn.Module):
    """A smooth policy small enough for finite differences: O inputs, A actions, spread that depends on the state."""

    def __init__(self, observations: int = 3, actions: int = 2, hidden: int = 4):
        super().__init__()
        self.hidden = nn.Linear(observations, hidden)
        self.out = nn.Linear(hidden, 2 * actions)

    def forward(self, observations: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(observations)))


def random_samples(
    policy: nn.Module,
    distribution: ActionDistribution,
    phi: Parameters,
    tasks: int,
    count: int,
    generator: torch.Generator,
) -> Samples:
    """Float64 samples as if drawn with phi (M, ...): real log-probs, random observations, advantages and weights."""
    inputs = next(iter(policy.parameters())).shape[1]
    observations = torch.randn(tasks, count, inputs, dtype=torch.float64, generator=generator)
    outputs = call_per_task(policy, phi, observations).detach()
    noise = torch.randn(tasks, count, outputs.shape[-1] // 2, dtype=torch.float64, generator=generator)
    actions = distribution.sample(outputs, noise)
    weights = torch.rand(tasks, count, dtype=torch.float64, generator=generator) + 0.1
    weights[:, -2:] = 0  # as steps after the end of an episode
    return Samples(
        observations=observations,
        actions=actions,
        dist_params=outputs,
        log_probs=distribution.log_prob(outputs, actions),
        advantages=torch.randn(tasks, count, dtype=torch.float64, generator=generator),
        weights=weights / weights.sum(dim=1, keepdim=True),
    )


def tiny_theta(policy: nn.Module, tasks: int) -> tuple[Parameters, Parameters]:
    """Float64 meta-parameters of a policy, and the same with an axis of M tasks."""
    theta = parameters_of(policy.double())
    return theta, expand_over_tasks(theta, tasks)


def finite_differences(function, vector: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Central differences of a function of a vector (n,), stacked along a last axis of n."""
    columns: Sequence[Tensor] = [
        (function(vector + step) - function(vector - step)) / (2 * epsilon)
        for step in epsilon * torch.eye(len(vector), dtype=vector.dtype)
    ]
    return torch.stack(list(columns), dim=-1)


def ragged_episodes(
    lengths: Sequence[Sequence[int]],
    observations: int = 2,
    horizon: int = 7,
    seed: int = 0,
    terminated: bool = True,
) -> Episodes:
    """(M, E) lengths to padded episodes whose padding holds garbage that must not matter; float64."""
    rng = np.random.default_rng(seed)
    tasks, episodes = np.shape(lengths)
    shape = (tasks, horizon, episodes)
    valid = np.arange(horizon)[None, :, None] < np.asarray(lengths)[:, None, :]
    rewards = np.where(valid, rng.normal(size=shape), 0)
    return Episodes(
        observations=torch.from_numpy(rng.normal(size=(*shape, observations))),
        actions=torch.from_numpy(rng.normal(size=(*shape, 1))),
        dist_params=torch.from_numpy(rng.normal(size=(*shape, 2))),
        log_probs=torch.from_numpy(rng.normal(size=shape)),
        rewards=torch.from_numpy(rewards),
        valid=torch.from_numpy(valid),
        terminated=torch.full((tasks, episodes), terminated),
        final_observations=torch.from_numpy(rng.normal(size=(tasks, episodes, observations))),
        failed=torch.zeros(tasks, episodes, dtype=torch.bool),
    )
