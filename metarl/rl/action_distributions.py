"""Action distributions as pure functions of a parameter tensor whose last axis holds the P distribution parameters.

A policy is any module that maps observations (batch, ...) to such parameters (batch, P). Which P, and in which order,
follows from the action space alone: see `DiagonalGaussian` and `Categorical`.
"""

import math
from typing import Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor

from metarl.core.randomness import RolloutKey


class ActionDistribution(Protocol):
    """What rollouts and objectives need to know about a family of distributions.

    Shapes: dist_params (..., P), actions (..., A) or (...) where they are discrete, results (...).

    Attributes:
        parameter_size: P.
        encoded_size: numbers of an action as `encode` gives it.
        meaning: of the P parameters, in words, for error messages.
    """

    parameter_size: int
    encoded_size: int
    meaning: str

    def noise(self, key: RolloutKey, tasks: int, steps: int, episodes: int) -> np.ndarray:
        """The noise (M, T, E, size) that `sample` turns into the actions of a whole rollout."""
        ...

    def sample(self, dist_params: Tensor, noise: Tensor) -> Tensor:
        """Turn noise into actions; a deterministic function of both arguments."""
        ...

    def log_prob(self, dist_params: Tensor, actions: Tensor) -> Tensor:
        """log p(action), summed over the dimensions of an action."""
        ...

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        """KL(old || new) = E_old[log old - log new], summed over the dimensions of an action."""
        ...

    def entropy(self, dist_params: Tensor) -> Tensor:
        """-E[log p(action)], in nats; of densities it may be negative."""
        ...

    def encode(self, actions: Tensor) -> Tensor:
        """Actions as inputs of a network, (..., encoded_size)."""
        ...

    def fisher_product(self, dist_params: Tensor, tangent: Tensor) -> Tensor:
        """Product of the Hessian of KL(dist_params || x) in x, taken at x = dist_params, with a tangent."""
        ...

    def std(self, dist_params: Tensor) -> Tensor:
        """The width of the distribution in the units of an action, (...); 1 for a family that has none."""
        ...

    def mode(self, dist_params: Tensor) -> Tensor:
        """Return the most likely action."""
        ...

    def summary(self, dist_params: Tensor) -> dict[str, float]:
        """Metrics worth watching, by name, averaged over dist_params (batch, P)."""
        ...

    def bound_violation(self, actions: Tensor) -> Tensor:
        """Squared distance of the policy's actions from what the environment gets, (...)."""
        ...

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """Map policy actions to those of the environment."""
        ...


class DiagonalGaussian:
    """Independent normal distributions for a `Box` of A actions; parameters (mean, log standard deviation), P = 2A.

    The policy acts in [-1, 1]: `to_environment` maps that interval linearly to the bounds of the space and clips,
    as the MAML paper's code does. A space without all bounds takes the actions as they are, clipped to those it has.
    """

    def __init__(self, space: gymnasium.spaces.Box):
        self.space = space
        self.actions = math.prod(space.shape)
        self.parameter_size = 2 * self.actions
        self.encoded_size = self.actions
        self.meaning = f"mean, then log standard deviation, of {self.actions} actions"
        self._bounded = bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
        self._bounds = (-1.0, 1.0) if self._bounded else (space.low.ravel(), space.high.ravel())

    def noise(self, key: RolloutKey, tasks: int, steps: int, episodes: int) -> np.ndarray:
        """Return standard normal numbers, (M, T, E, A), float32."""
        return key.normal(tasks, steps, episodes, self.actions)

    def sample(self, dist_params: Tensor, noise: Tensor) -> Tensor:
        """Return mean + std * noise."""
        mean, log_std = dist_params.chunk(2, dim=-1)
        return mean + log_std.exp() * noise

    def log_prob(self, dist_params: Tensor, actions: Tensor) -> Tensor:
        """sum_i -z_i^2 / 2 - log std_i - log(2 pi) / 2 with z = (action - mean) / std."""
        mean, log_std = dist_params.chunk(2, dim=-1)
        z = (actions - mean) * torch.exp(-log_std)
        return -(0.5 * z.square() + log_std).sum(-1) - 0.5 * self.actions * math.log(2 * math.pi)

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        """sum_i log(s'_i / s_i) + (s_i^2 + (m_i - m'_i)^2) / (2 s'_i^2) - 1/2, with ' for new."""
        old_mean, old_log_std = old.chunk(2, dim=-1)
        new_mean, new_log_std = new.chunk(2, dim=-1)
        squares = torch.exp(2 * old_log_std) + (old_mean - new_mean).square()
        terms = new_log_std - old_log_std + 0.5 * squares * torch.exp(-2 * new_log_std) - 0.5
        return terms.sum(-1)

    def entropy(self, dist_params: Tensor) -> Tensor:
        """sum_i log std_i + log(2 pi e) / 2."""
        _, log_std = dist_params.chunk(2, dim=-1)
        return log_std.sum(-1) + 0.5 * self.actions * math.log(2 * math.pi * math.e)

    def encode(self, actions: Tensor) -> Tensor:
        """Return the actions as they are, in the policy's range."""
        return actions

    def fisher_product(self, dist_params: Tensor, tangent: Tensor) -> Tensor:
        """The Fisher matrix is diagonal: 1 / std^2 for the mean and 2 for the log standard deviation."""
        _, log_std = dist_params.chunk(2, dim=-1)
        mean_tangent, log_std_tangent = tangent.chunk(2, dim=-1)
        return torch.cat([mean_tangent * torch.exp(-2 * log_std), 2 * log_std_tangent], dim=-1)

    def std(self, dist_params: Tensor) -> Tensor:
        """Return the geometric mean of the standard deviations of an action's dimensions."""
        return dist_params.chunk(2, dim=-1)[1].mean(-1).exp()

    def mode(self, dist_params: Tensor) -> Tensor:
        """Return the mean, which is the most likely action."""
        return dist_params.chunk(2, dim=-1)[0]

    def summary(self, dist_params: Tensor) -> dict[str, float]:
        """The mean standard deviation, in the policy's range [-1, 1], and the share of means beyond their bounds."""
        mean, log_std = dist_params.chunk(2, dim=-1)
        beyond = (mean != self._clipped(mean)).float().mean()
        return {"policy_std": log_std.exp().mean().item(), "means_beyond_bounds": beyond.item()}

    def bound_violation(self, actions: Tensor) -> Tensor:
        """sum_i (a_i - clip(a_i))^2, in the policy's units; 0 within the bounds."""
        return (actions - self._clipped(actions)).square().sum(-1)

    def _clipped(self, actions: Tensor) -> Tensor:
        low, high = (torch.as_tensor(bound, dtype=actions.dtype, device=actions.device) for bound in self._bounds)
        return actions.clamp(low, high)

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """low + (action + 1) / 2 * (high - low), clipped to the bounds; (..., A) to (..., *space.shape)."""
        actions = actions.reshape(*actions.shape[:-1], *self.space.shape)
        low, high = self.space.low, self.space.high
        return np.clip(low + 0.5 * (actions + 1.0) * (high - low) if self._bounded else actions, low, high)


class Categorical:
    """One of n actions, for a `Discrete` space; parameters are n logits, P = n."""

    def __init__(self, space: gymnasium.spaces.Discrete):
        self.space = space
        self.parameter_size = self.encoded_size = int(space.n)
        self.meaning = f"logits of {self.parameter_size} actions"

    def noise(self, key: RolloutKey, tasks: int, steps: int, episodes: int) -> np.ndarray:
        """Return uniform numbers in [0, 1), (M, T, E, 1), float32."""
        return key.uniform(tasks, steps, episodes, 1)

    def sample(self, dist_params: Tensor, noise: Tensor) -> Tensor:
        """Inverse of the cumulative distribution: the number of actions whose cumulated probability is <= noise."""
        cumulated = torch.softmax(dist_params, dim=-1).cumsum(-1)[..., :-1]
        return (cumulated <= noise).sum(-1)

    def log_prob(self, dist_params: Tensor, actions: Tensor) -> Tensor:
        """Logit of the action minus the log-sum-exp of all."""
        return torch.log_softmax(dist_params, -1).gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        """sum_a p(a) (log p(a) - log q(a)), p old and q new."""
        old_log, new_log = torch.log_softmax(old, -1), torch.log_softmax(new, -1)
        possible = old_log > -math.inf  # an action masked by a logit of -inf adds 0
        return (old_log.exp() * torch.where(possible, old_log - new_log, 0)).sum(-1)

    def entropy(self, dist_params: Tensor) -> Tensor:
        """-sum_a p(a) log p(a)."""
        return torch.special.entr(torch.softmax(dist_params, -1)).sum(-1)

    def encode(self, actions: Tensor) -> Tensor:
        """Return each action one-hot, float32."""
        return torch.nn.functional.one_hot(actions.long(), self.encoded_size).float()

    def fisher_product(self, dist_params: Tensor, tangent: Tensor) -> Tensor:
        """Return (diag(p) - p p') tangent, p being the probabilities."""
        weighted = torch.softmax(dist_params, -1) * tangent
        return weighted - torch.softmax(dist_params, -1) * weighted.sum(-1, keepdim=True)

    def std(self, dist_params: Tensor) -> Tensor:
        """Return 1, as logits have no width and the gradients of their log-probabilities are bounded."""
        return torch.ones_like(dist_params[..., 0])

    def mode(self, dist_params: Tensor) -> Tensor:
        """Return the action with the largest logit."""
        return dist_params.argmax(-1)

    def summary(self, dist_params: Tensor) -> dict[str, float]:
        """Return the mean entropy of the distributions, in nats."""
        return {"policy_entropy": self.entropy(dist_params).mean().item()}

    def bound_violation(self, actions: Tensor) -> Tensor:
        """Return 0, as no action is out of bounds."""
        return torch.zeros(actions.shape, device=actions.device)

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """Shift 0..n-1 to the first action of the space."""
        return actions + self.space.start


def action_distribution_for(space: gymnasium.Space) -> ActionDistribution:
    """Return the distribution family of an action space; ValueError for one that no family fits."""
    if isinstance(space, gymnasium.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return DiagonalGaussian(space)
    if isinstance(space, gymnasium.spaces.Discrete):
        return Categorical(space)
    raise ValueError(f"action space {space} is not supported; allowed: Box of floating-point numbers, or Discrete")
