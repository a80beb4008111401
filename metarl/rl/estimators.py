"""Losses whose gradient estimates the policy gradient, as pure functions of a batch of samples.

Their first derivatives agree where the samples were drawn: all give -sum_n w_n A_n d log p(a_n | o_n). An inner step
differentiated in the meta-parameters needs their second derivatives, and there they differ. Write l_t for
log p(a_t | o_t), A_t for an unbiased advantage, J for the expected return. The Hessian of J is (Foerster et al. 2018,
Rothfuss et al. 2019)

    E sum_t A_t (l_t'' + l_t' l_t'^T + sum_{k<t} (l_t' l_k'^T + l_k' l_t'^T)),

of which the estimators keep

    score               sum_t A_t l_t''                     biased; the bias depends on the baseline
    likelihood ratio    sum_t A_t (l_t'' + l_t' l_t'^T)     biased
    lvc                 the same where the samples were drawn; elsewhere without importance weights
    dice                all of it                           unbiased

each times the weights w, under which a task's steps sum to 1. With the whole Hessian the meta-gradient becomes unbiased
as the number E of support episodes grows. For a finite E the objective is the expectation of J(phi(support)), whose
gradient has two parts: that of phi at fixed support data, which `score` gives exactly, and the dependence of the
support data on theta, which `sampling_term` gives. Their sum is unbiased for every E. With inner step size alpha,
`dice` deviates from it by O(alpha^2 / E), the others by O(alpha).

All this holds for advantages that are unbiased (GAE with lambda 1, undiscounted, not standardised, a baseline not
fitted on the same samples) and episodes of one length; elsewhere it holds approximately.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metarl.core.parameters import Parameters, call_per_task
from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.episodes import Samples

Estimator = Callable[[ActionDistribution, Tensor, Samples], Tensor]


STEP_UNITS = ("gradient", "std")


@dataclass(frozen=True)
class PolicyModel:
    """A policy, the family of its outputs and the estimator that stands for its return; the loss of the inner loop.

    With the step unit `std` the inner loss of a task is multiplied by the standard deviation sigma of the policy that
    sampled its data. For a Gaussian policy with J = d mean / d phi, z = (a - mean) / sigma and advantages A of standard
    deviation 1, an inner step on N samples is otherwise

        phi' - phi = alpha / N sum_n A_n J_n' z_n / sigma,    whose noise has the covariance alpha^2 J'J / (N sigma^2),

    and its KL, |J (phi' - phi)|^2 / (2 sigma^2), is proportional to alpha^2 / sigma^4. So a step size that suits the
    first policy, with sigma = 1, is too long for a later one. What a step has to do does not change with sigma: it
    moves the mean action from what suits all tasks to what suits one. Multiplied by sigma the step is

        phi' - phi = alpha / N sum_n A_n J_n' z_n,    with the covariance alpha^2 J'J / N,

    in which nothing depends on sigma: E A z is the correlation of advantage and noise, at most 1. Its KL still rises,
    with alpha^2 / sigma^2, as it must if policies of less noise are to differ as much as before. (A factor of sigma^2
    is the natural gradient in the space of the mean; it spends the same KL always, and moves less and less.)

    The factor belongs to the data, as advantages do: derivatives in theta are those of the step with this factor held
    fixed, with any estimator and order.

    Attributes:
        policy: maps observations (batch, ...) to the parameters of an action distribution (batch, P).
        action_distribution: the family that the P parameters belong to.
        estimator: the inner loss.
        step_unit: `gradient`, or `std` as above.
    """

    policy: nn.Module
    action_distribution: ActionDistribution
    estimator: Estimator
    step_unit: str = "gradient"

    def outputs(self, phi: Parameters, samples: Samples) -> Tensor:
        """Distribution parameters (M, N, P) of policies with parameters phi (M, ...) on the samples' observations."""
        return call_per_task(self.policy, phi, samples.observations)

    def __call__(self, phi: Parameters, samples: Samples) -> Tensor:
        """The inner loss of each task, (M,)."""
        losses = self.estimator(self.action_distribution, self.outputs(phi, samples), samples)
        if losses.shape != samples.weights.shape[:1]:
            num_tasks = len(samples.weights)
            raise ValueError(
                f"the estimator gives {tuple(losses.shape)} for {num_tasks} tasks; allowed: ({num_tasks},)"
            )
        if self.step_unit == "gradient":
            return losses
        stds = self.action_distribution.std(samples.dist_params)
        return losses * torch.where(samples.weights > 0, samples.weights * stds, 0).sum(dim=1)


def score(action_distribution: ActionDistribution, outputs: Tensor, samples: Samples) -> Tensor:
    """-sum_n w_n log p(a_n | o_n) A_n for every task: the inner loss of Finn et al. 2017.

    The expectation of its Hessian is -E sum_n w_n A_n d^2 log p(a_n | o_n): it lacks the dependence of the sampling
    distribution on the parameters, so the meta-gradient through it is biased (Al-Shedivat et al. 2018, Rothfuss et
    al. 2019), unless `sampling_term` joins the outer loss: then it is unbiased for any number of episodes.

    Args:
        action_distribution: the family of the outputs.
        outputs: distribution parameters of the policy at hand, (M, N, P).
        samples: M tasks.

    Returns:
        (M,).
    """
    log_probs = action_distribution.log_prob(outputs, samples.actions)
    return -(samples.weights * samples.advantages * log_probs).sum(dim=1)


def surrogate(action_distribution: ActionDistribution, outputs: Tensor, samples: Samples) -> Tensor:
    """-sum_n w_n (p(a_n | o_n) / p_old(a_n | o_n)) A_n for every task (Schulman et al. 2015); shapes as in `score`.

    The outer loss of TRPO, and as an inner loss the `likelihood-ratio` estimator of ProMP's algorithm (Rothfuss et al.
    2019, section 6), whose derivatives are those of `lvc` where the samples were drawn, so that the meta-gradient
    has the same bias there. Elsewhere, as in the later epochs of PPO or in a line search, it weighs the samples by
    importance, step by step.
    """
    ratios = (action_distribution.log_prob(outputs, samples.actions) - samples.log_probs).exp()
    return -(samples.weights * samples.advantages * ratios).sum(dim=1)


def lvc(action_distribution: ActionDistribution, outputs: Tensor, samples: Samples) -> Tensor:
    """-sum_n w_n (p(a_n | o_n) / stop_gradient(p(a_n | o_n))) A_n: low-variance curvature; shapes as in `score`.

    Rothfuss et al. 2019, section 5. The expectation of its Hessian is -E sum_n w_n A_n d^2 p(a_n | o_n) / p(a_n | o_n):
    of the Hessian of the return it lacks the products of different steps of an episode, that is, how an action affects
    the gradient of what follows. So the meta-gradient is biased.

    Here as in `dice` the inner step, as a function of theta at fixed support data, is that of `score`; only its
    derivative differs. A line search therefore measures another function than the one that the meta-gradient descends.
    With `surrogate` as inner loss both are the same.
    """
    log_probs = action_distribution.log_prob(outputs, samples.actions)
    return -(samples.weights * samples.advantages * _magic_box(log_probs)).sum(dim=1)


def dice(action_distribution: ActionDistribution, outputs: Tensor, samples: Samples) -> Tensor:
    """-sum_{t,e} w (box(l_0 + ... + l_t) - box(l_0 + ... + l_{t-1})) A_{t,e}, box(x) = exp(x - stop_gradient(x)).

    DiCE (Foerster et al. 2018): with A_t the reward-to-go this is sum_t box(l_0 + ... + l_t) r_t rearranged, and a
    baseline b(o_t) in A_t adds (box(l_0 + ... + l_{t-1}) - box(l_0 + ... + l_t)) b(o_t), whose derivatives all have
    expectation 0 (Mao et al. 2019, Farquhar et al. 2019). That is a deviation: Foerster's own baseline term,
    (1 - box(l_t)) b(o_t), does not reduce the variance of the products of different steps. The Hessian is an unbiased
    estimate of that of minus the weighted return, and the meta-gradient is unbiased but for O(alpha^2 / E).

    Steps that are not valid follow all valid ones of an episode and have weight 0, so padding plays no part. Shapes as
    in `score`; the samples must be whole episodes.
    """
    if samples.time_steps is None:
        raise ValueError("dice got single steps; allowed: samples of whole episodes")
    log_probs = action_distribution.log_prob(outputs, samples.actions).unflatten(1, (samples.time_steps, -1))
    cumulated = log_probs.cumsum(dim=1)
    impact = _magic_box(cumulated) - _magic_box(cumulated - log_probs)
    return -(samples.weights * samples.advantages * impact.flatten(1)).sum(dim=1)


ESTIMATORS: dict[str, Estimator] = {"score": score, "likelihood-ratio": surrogate, "lvc": lvc, "dice": dice}

# Couples the steps of an episode: a subsample must keep or drop episodes as a whole.
EPISODIC = frozenset({dice})

# Their Hessians hold what `sampling_term` adds, in whole or in part: together they would count it twice.
WITH_SAMPLING = frozenset({surrogate, lvc, dice})


def clipped_surrogate(
    action_distribution: ActionDistribution, outputs: Tensor, samples: Samples, clip: float
) -> Tensor:
    """-sum_n w_n min(r_n A_n, clip(r_n, 1 - clip, 1 + clip) A_n), r_n = p / p_old (PPO, Schulman et al. 2017)."""
    ratios = (action_distribution.log_prob(outputs, samples.actions) - samples.log_probs).exp()
    bounded = ratios.clamp(1 - clip, 1 + clip)
    lower = torch.minimum(ratios * samples.advantages, bounded * samples.advantages)
    return -(samples.weights * lower).sum(dim=1)


def sampling_term(
    action_distribution: ActionDistribution, outputs: Sequence[Tensor], supports: Sequence[Samples], outcomes: Tensor
) -> Tensor:
    """-R_m sum_s sum_n (log p(a_n | o_n; phi_s) - log p_old(a_n | o_n)) over all valid steps of all supports.

    What E-MAML adds to the outer loss (Stadie et al. 2018; Al-Shedivat et al. 2018): its gradient is the
    dependence of the support data on theta. With several inner steps the data of each depend on theta through the
    parameters that sampled them. Value 0 where the samples were drawn.

    Args:
        action_distribution: the family of the outputs.
        outputs: S times (M, N, P), of phi_0 ... phi_{S-1} on the observations of their supports.
        supports: S times M tasks.
        outcomes: R, (M,), the return after adaptation in the units of the weighted outer loss, less a baseline that
            does not depend on the task's own samples.

    Returns:
        (M,).
    """
    total = torch.zeros_like(outcomes)
    for output, samples in zip(outputs, supports, strict=True):
        change = action_distribution.log_prob(output, samples.actions) - samples.log_probs
        total = total - outcomes * torch.where(samples.weights > 0, change, 0).sum(dim=1)
    return total


def outcomes(returns: Tensor, lengths: Tensor, stds: Tensor) -> Tensor:
    """Mean return after adaptation, less that of the other tasks, in the units of the outer loss: R of `sampling_term`.

    Tasks are independent, so that baseline adds no bias. The unit, mean length of an episode times mean standard
    deviation, is one for all tasks: a task's own length and standard deviation depend on its support data as its return
    does, and R would no longer have the order of the returns.

    Args:
        returns: of the episodes after adaptation, (M, E), 0 where there is none.
        lengths: number of their valid steps, (M, E), 0 where there is none.
        stds: what the advantages of each task were divided by, (M,).

    Returns:
        (M,).
    """
    taken = lengths > 0
    mean_returns = returns.sum(dim=1) / taken.sum(dim=1)
    unit = lengths.sum() / taken.sum() * (stds.mean() + 1e-8)
    others = max(1, len(returns) - 1)
    return (mean_returns - (mean_returns.sum() - mean_returns) / others) / unit


def _magic_box(x: Tensor) -> Tensor:
    return (x - x.detach()).exp()
