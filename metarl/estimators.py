"""Inner-loop losses whose gradient estimates the policy gradient, as pure functions of a batch of samples."""

from collections.abc import Callable

from torch import Tensor, nn

from metarl.adaptation import Loss
from metarl.distributions import ActionDistribution
from metarl.episodes import Samples
from metarl.parameters import Parameters, call_per_task

Estimator = Callable[[ActionDistribution, Tensor, Samples], Tensor]


def policy_loss(policy: nn.Module, distribution: ActionDistribution, estimator: Estimator) -> Loss[Samples]:
    """The inner loss of a policy: (phi, samples) of M tasks to (M,)."""

    def loss(phi: Parameters, samples: Samples) -> Tensor:
        return estimator(distribution, call_per_task(policy, phi, samples.observations), samples)

    return loss


def score(distribution: ActionDistribution, outputs: Tensor, samples: Samples) -> Tensor:
    """-sum_n w_n log p(a_n | o_n) A_n for every task: the inner loss of Finn et al. 2017.

    Its gradient is the policy gradient. Its Hessian lacks the dependence of the sampling distribution on the
    parameters, so the meta-gradient through it is biased (Al-Shedivat et al. 2018, Rothfuss et al. 2019).

    Args:
        distribution: the family of the outputs.
        outputs: distribution parameters of the policy at hand, (M, N, P).
        samples: M tasks.

    Returns:
        (M,).
    """
    log_probs = distribution.log_prob(outputs, samples.actions)
    return -(samples.weights * samples.advantages * log_probs).sum(dim=1)


def surrogate(distribution: ActionDistribution, outputs: Tensor, samples: Samples) -> Tensor:
    """-sum_n w_n (p(a_n | o_n) / p_old(a_n | o_n)) A_n for every task (Schulman et al. 2015); shapes as in `score`."""
    ratios = (distribution.log_prob(outputs, samples.actions) - samples.log_probs).exp()
    return -(samples.weights * samples.advantages * ratios).sum(dim=1)
