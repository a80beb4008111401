"""Returns, baselines and advantages as pure functions. Shapes: M tasks, T steps, E episodes, O observation size."""

import torch
from torch import Tensor

from metarl.core.parallel import parallel_map, task_chunks, workers
from metarl.core.validation import require_one_of
from metarl.rl.episodes import Episodes

_FEATURE_BUDGET = 4_000_000  # numbers in a chunk of baseline features: 32 MB
# numbers of an observation; more would explain the noise of the very episodes that the baseline is fitted on
_LARGEST_LINEAR, _LARGEST_QUADRATIC = 512, 40
BASELINES = ("linear", "quadratic")


def require_baseline(baseline: str, numbers: int, samples: int) -> None:
    """ValueError unless a baseline of that name suits observations of so many numbers and samples of a task."""
    require_one_of(BASELINES, "baseline", baseline)
    if baseline != "quadratic":
        return
    if numbers > _LARGEST_QUADRATIC:
        raise ValueError(
            f"baseline = {baseline!r} with observations of {numbers} numbers; allowed: at most {_LARGEST_QUADRATIC}"
        )
    features = baseline_features(torch.zeros(1, numbers), torch.zeros(1), baseline).shape[-1]
    if 2 * features > samples:
        raise ValueError(
            f"baseline = {baseline!r} with {features} features and {samples} samples of a task; allowed: "
            f"at least {2 * features} samples, for it would explain the noise of fewer"
        )


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


def mean_and_deviation(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
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
    mean, deviation = (moment.view(-1, 1, 1) for moment in mean_and_deviation(values, valid))
    return torch.where(valid, values - mean, 0) / (deviation + 1e-8)


def baseline_features(observations: Tensor, steps: Tensor, baseline: str = "linear") -> Tensor:
    """[o, o^2, t/100, (t/100)^2, (t/100)^3, 1] with o clipped to [-10, 10] (Duan et al. 2016).

    Observations of more than 512 numbers, such as images, are left out: time alone predicts.

    Args:
        observations: (..., O), or (..., *shape) of any shape with O numbers.
        steps: time step t of each, (...).
        baseline: `linear`: these; `quadratic`: the products o_i o_j, i <= j, in place of o^2.

    Returns:
        (..., 2 * O + 4), or (..., 4), or (..., 2 * O + 4 + O * (O - 1) / 2); float64: the normal equations square the
        condition number.
    """
    t = (steps.double() / 100).unsqueeze(-1)
    of_time = [t, t**2, t**3, torch.ones_like(t)]
    if observations.shape[steps.ndim :].numel() > _LARGEST_LINEAR:
        return torch.cat(of_time, dim=-1)
    o = observations.double().clamp(-10, 10).reshape(*steps.shape, -1)
    squares = [o.square()]
    if baseline == "quadratic":
        squares = [o[..., i : i + 1] * o[..., i:] for i in range(o.shape[-1])]
    return torch.cat([o, *squares, *of_time], dim=-1)


def fit_linear_baseline(
    features: Tensor, targets: Tensor, valid: Tensor, ridge: float = 1e-5, first_task: int = 0
) -> Tensor:
    """Minimise sum over valid steps (features @ w - target)^2 + ridge |w|^2, for every task on its own.

    Where the normal equations cannot be solved, the ridge of that task rises tenfold, up to five times.

    Args:
        features: (M, N, F).
        targets: (M, N).
        valid: (M, N) bool.
        ridge: the penalty's factor.
        first_task: number of the first of these tasks, for the error's text.

    Returns:
        coefficients (M, F).

    Raises:
        ArithmeticError: when no ridge helps, as with values that are not finite; names the task.
    """
    masked = torch.where(valid.unsqueeze(-1), features, 0)
    gram = masked.mT @ masked
    moments = masked.mT @ torch.where(valid, targets, 0).to(features.dtype).unsqueeze(-1)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    ridges = torch.full((len(gram), 1, 1), ridge, dtype=gram.dtype, device=gram.device)
    for _ in range(6):
        factor, failure = torch.linalg.cholesky_ex(gram + ridges * identity)
        coefficients = torch.cholesky_solve(moments, factor).squeeze(-1)
        failed = (failure != 0) | ~torch.isfinite(coefficients).all(dim=-1)
        if not failed.any():
            return coefficients
        ridges = torch.where(failed.view(-1, 1, 1), ridges * 10, ridges)
    raise ArithmeticError(f"the baseline of task {first_task + int(failed.nonzero()[0])} cannot be fitted")


def estimate_advantages(
    episodes: Episodes,
    discount: float = 0.99,
    gae_lambda: float = 1.0,
    bootstrap: bool = False,
    baseline: str = "linear",
    first_task: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised advantages against a baseline, refitted for every task on the very episodes it predicts.

    Args:
        episodes: a rollout.
        discount, gae_lambda: as in `generalised_advantages`.
        bootstrap: take the baseline's prediction, instead of 0, as the value of the state at the time limit. The
            baseline then sees no time, and is fitted to returns that include its own prediction there.
        baseline: which features, see `baseline_features`.
        first_task: number of the first of these tasks, for the error of a baseline that cannot be fitted.

    Returns:
        advantages (M, T, E); the share of the returns' variance that the baseline explains, (M,); and the standard
        deviation that the advantages were divided by, (M,).
    """
    first = (slice(1), slice(1), slice(1))
    features = baseline_features(episodes.observations[first], episodes.rewards[first], baseline).shape[-1]
    size = max(1, _FEATURE_BUDGET // (features * episodes.valid[0].numel()))

    def of_chunk(tasks: slice) -> tuple[Tensor, Tensor, Tensor]:
        first = first_task + tasks.start
        return _advantages_of(episodes.of_tasks(tasks), discount, gae_lambda, bootstrap, baseline, first)

    device = episodes.valid.device
    parts = parallel_map(of_chunk, task_chunks(len(episodes.valid), size, workers(device)), device)
    advantages, explained_variance, deviations = (torch.cat(part) for part in zip(*parts, strict=True))
    return advantages, explained_variance, deviations


def _advantages_of(
    episodes: Episodes, discount: float, gae_lambda: float, bootstrap: bool, baseline: str, first_task: int
) -> tuple[Tensor, Tensor, Tensor]:
    valid, rewards, dtype = episodes.valid, episodes.rewards.double(), episodes.rewards.dtype
    time = torch.arange(rewards.shape[1], device=rewards.device).view(1, -1, 1).expand_as(rewards)
    returns = discounted_returns(rewards, discount)
    features = baseline_features(episodes.observations, time * (not bootstrap), baseline)
    fitted, final_values = features, None
    if bootstrap:  # w' f_t = R_t + discount^(T - t) w' f_T, so the fit of w' (f_t - discount^(T - t) f_T) to R_t
        final_features = baseline_features(episodes.final_observations, torch.zeros_like(episodes.lengths), baseline)
        final_features = torch.where(episodes.terminated.unsqueeze(-1), 0, final_features)
        left = (episodes.lengths.unsqueeze(1) - time).clamp_min(0)
        fitted = features - (discount**left).unsqueeze(-1) * final_features.unsqueeze(1)
    coefficients = fit_linear_baseline(
        fitted.flatten(1, 2), returns.flatten(1, 2), valid.flatten(1, 2), first_task=first_task
    )
    values = torch.einsum("mtef,mf->mte", features, coefficients)
    if bootstrap:
        final_values = torch.einsum("mef,mf->me", final_features, coefficients)
        returns = returns + discount**left * final_values.unsqueeze(1)
    advantages = generalised_advantages(rewards, values, valid, discount, gae_lambda, final_values)
    deviation = mean_and_deviation(advantages, valid)[1].to(dtype)
    return standardise(advantages, valid).to(dtype), explained_variance(values, returns, valid), deviation


def explained_variance(values: Tensor, returns: Tensor, valid: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the valid steps of each task; (M, T, E) to (M,)."""
    unexplained, total = (mean_and_deviation(x, valid)[1].square() for x in (returns - values, returns))
    return 1 - unexplained / total.clamp_min(1e-12)
