"""Returns and advantages as pure functions, and the settings of their estimation.

Shapes: M tasks, T time steps, E episodes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.core.parallel import parallel_map, task_chunks, workers
from metarl.core.settings import check_settings, setting
from metarl.rl.baseline import BASELINES, baseline_features, fit_linear_baseline
from metarl.rl.episodes import WEIGHTINGS, Episodes

_FEATURE_BUDGET = 4_000_000  # numbers in a chunk of baseline features: 32 MB


@dataclass(frozen=True)
class Advantages:
    """How advantages are estimated, and how the steps of a task weigh in its losses.

    `fit_values` and `standardised_advantages` have the equations. A support lambda of its own pays because an inner
    gradient comes from the few episodes of one task and is mostly noise, which a smaller lambda reduces; the
    meta-gradient averages over all tasks, and keeps the larger one's smaller bias. Beyond the bounds that an action is
    clipped to actions do not differ, so nothing but a penalty brings a policy back, and its gradients there are noise.
    """

    discount: float = setting(0.99, "factor of later rewards", at_least=0, at_most=1, source="paper's code")
    gae_lambda: float = setting(1.0, "factor of later advantages", at_least=0, at_most=1, source="paper's code")
    support_lambda: float | None = setting(
        None, "gae lambda of the data of inner steps, if another", at_least=0, at_most=1
    )
    survival_bonus: float = setting(
        0.0,
        "added to every reward that learning sees, but not to reported returns: ending an episode early no longer pays "
        "where rewards are negative",
        at_least=0,
    )
    bounds_penalty: float = setting(
        0.0,
        "subtracted from every reward that learning sees, but not from reported returns, times the squared distance of "
        "the action from the bounds it is clipped to",
        at_least=0,
    )
    bootstrap: bool = setting(False, "value the state at the time limit instead of taking 0 there")
    baseline: str = setting(
        "linear",
        "what predicts the returns: observations and their squares, or also the products of their numbers",
        choices=BASELINES,
        source="paper's code",
    )
    weighting: str = setting("timestep", "which parts of a task weigh the same in its losses", choices=WEIGHTINGS)

    def __post_init__(self) -> None:
        check_settings(self)

    def gae_lambda_of(self, support: bool) -> float:
        """The lambda of the data of inner steps, or of those after all of them."""
        return self.support_lambda if support and self.support_lambda is not None else self.gae_lambda


def discounted_returns(rewards: Tensor, discount: float) -> Tensor:
    """G_t = r_t + discount * G_{t+1} along the time axis, with G_T = 0.

    Args:
        rewards: (M, T, E), 0 after the end of an episode.
        discount: gamma in [0, 1].

    Returns:
        (M, T, E).
    """
    returns = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + discount * following
        returns[:, t] = following
    return returns


def generalised_advantages(
    rewards: Tensor,
    values: Tensor,
    valid: Tensor,
    discount: float,
    gae_lambda: float,
    final_values: Tensor | None = None,
) -> Tensor:
    """A_t = delta_t + discount * lambda * A_{t+1}, delta_t = r_t + discount * V_{t+1} - V_t (Schulman et al. 2016).

    The value after the last valid step is 0, at a termination and at the time limit alike (the finite-horizon
    protocol of the MAML paper), unless `final_values` says otherwise.

    Args:
        rewards, values: (M, T, E).
        valid: (M, T, E) bool; a prefix of every episode's time axis.
        discount, gae_lambda: in [0, 1].
        final_values: (M, E), the value of the state after the last valid step; 0 where the episode terminated.

    Returns:
        (M, T, E), 0 where not valid.
    """
    values = torch.where(valid, values, 0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    if final_values is not None:
        last = (valid.sum(dim=1, keepdim=True) - 1).clamp_min(0)  # of an absent episode too, where nothing counts
        next_values = next_values.scatter(1, last, final_values.unsqueeze(1))
    deltas = torch.where(valid, rewards + discount * next_values - values, 0)
    return discounted_returns(deltas, discount * gae_lambda)


def mean_and_std(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the valid steps of each task, (M, T, E) to (M,) twice."""
    count = valid.sum(dim=(1, 2))
    mean = torch.where(valid, values, 0).sum(dim=(1, 2)) / count
    squares = torch.where(valid, values - mean.view(-1, 1, 1), 0).square().sum(dim=(1, 2))
    return mean, (squares / count).sqrt()


def standardise(values: Tensor, valid: Tensor) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over the valid steps of each task; 0 elsewhere.

    Args:
        values: (M, T, E).
        valid: (M, T, E) bool.
    """
    mean, std = (moment.view(-1, 1, 1) for moment in mean_and_std(values, valid))
    return torch.where(valid, values - mean, 0) / (std + 1e-8)


@dataclass(frozen=True)
class Values:
    """What a baseline predicts of the returns of episodes, float64.

    Attributes:
        values: of every step, (M, T, E).
        final_values: of the state after the last valid step, (M, E), 0 where nothing counts after it.
        explained_variance: the share of the returns' variance that the baseline explains, (M,).
    """

    values: Tensor
    final_values: Tensor
    explained_variance: Tensor


def fit_values(
    episodes: Episodes, discount: float = 0.99, bootstrap: bool = False, baseline: str = "linear", first_task: int = 0
) -> Values:
    """The values of a baseline that is fitted for every task on the very episodes it predicts.

    Args:
        episodes: a rollout.
        discount: in [0, 1].
        bootstrap: take the baseline's prediction, instead of 0, as the value of the state at the time limit. The
            baseline then sees no time, and is fitted to returns that include its own prediction there.
        baseline: which features, see `baseline_features`.
        first_task: number of the first of these tasks, for the error of a baseline that cannot be fitted.
    """
    first = (slice(1), slice(1), slice(1))
    features = baseline_features(episodes.observations[first], episodes.rewards[first], baseline).shape[-1]
    size = max(1, _FEATURE_BUDGET // (features * episodes.valid[0].numel()))

    def of_chunk(tasks: slice) -> tuple[Tensor, Tensor, Tensor]:
        return _values_of(episodes.of_tasks(tasks), discount, bootstrap, baseline, first_task + tasks.start)

    device = episodes.valid.device
    parts = parallel_map(of_chunk, task_chunks(len(episodes.valid), size, workers(device)), device)
    return Values(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _values_of(
    episodes: Episodes, discount: float, bootstrap: bool, baseline: str, first_task: int
) -> tuple[Tensor, Tensor, Tensor]:
    # discounted returns, and the features that are to predict them
    valid, rewards = episodes.valid, episodes.rewards.double()
    time = torch.arange(rewards.shape[1], device=rewards.device).view(1, -1, 1).expand_as(rewards)
    returns = discounted_returns(rewards, discount)
    features = baseline_features(episodes.observations, time * (not bootstrap), baseline)
    fitted, final_values = features, torch.zeros_like(returns[:, 0])
    if bootstrap:  # w' f_t = R_t + discount^(T - t) w' f_T, so the fit of w' (f_t - discount^(T - t) f_T) to R_t
        final_features = baseline_features(episodes.final_observations, torch.zeros_like(episodes.lengths), baseline)
        final_features = torch.where(episodes.terminated.unsqueeze(-1), 0, final_features)
        left = (episodes.lengths.unsqueeze(1) - time).clamp_min(0)
        fitted = features - (discount**left).unsqueeze(-1) * final_features.unsqueeze(1)
    # the baseline, fitted to each task by itself, and what it predicts
    coefficients = fit_linear_baseline(
        fitted.flatten(1, 2), returns.flatten(1, 2), valid.flatten(1, 2), first_task=first_task
    )
    values = torch.einsum("mtef,mf->mte", features, coefficients)
    if bootstrap:
        final_values = torch.einsum("mef,mf->me", final_features, coefficients)
        returns = returns + discount**left * final_values.unsqueeze(1)
    return values, final_values, explained_variance(values, returns, valid)


def standardised_advantages(
    episodes: Episodes, values: Values, discount: float = 0.99, gae_lambda: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Advantages against values, scaled to the size that losses expect.

    Args:
        episodes: a rollout.
        values: of its steps.
        discount, gae_lambda: as in `generalised_advantages`.

    Returns:
        advantages (M, T, E), and the standard deviation that they were divided by, (M,).
    """
    valid, dtype = episodes.valid, episodes.rewards.dtype
    advantages = generalised_advantages(
        episodes.rewards.double(), values.values, valid, discount, gae_lambda, values.final_values
    )
    return standardise(advantages, valid).to(dtype), mean_and_std(advantages, valid)[1].to(dtype)


def explained_variance(values: Tensor, returns: Tensor, valid: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the valid steps of each task; (M, T, E) to (M,)."""
    unexplained, total = (mean_and_std(x, valid)[1].square() for x in (returns - values, returns))
    return 1 - unexplained / total.clamp_min(1e-12)
