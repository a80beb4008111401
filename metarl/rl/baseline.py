"""Baselines: linear functions of observations and time that predict returns, fitted to each task by itself.

Shapes: M tasks, N samples, O numbers of an observation, F features.
"""

import torch
from torch import Tensor

from metarl.core.validation import require_one_of

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
