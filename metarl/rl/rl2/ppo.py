"""PPO on whole trials, with gradients through time: the outer loop of RL^2.

Axes: M trials, L steps of the longest one; B trials of a minibatch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from metarl.core.adam import AdamState, adam_step
from metarl.core.errors import NonFiniteError
from metarl.core.parallel import own_copy, parallel_map, task_chunks
from metarl.core.parameters import Parameters
from metarl.core.settings import check_settings, setting
from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.outer import UpdateOutcome
from metarl.rl.rl2.trials import Trials

Result = TypeVar("Result")


@dataclass(frozen=True)
class TrialPPO:
    """Proximal policy optimisation (Schulman et al. 2017) of a policy with a memory.

    A minibatch is a set of whole trials. Its loss is the mean over all their steps of

        -min(r A, clip(r, 1 - clip, 1 + clip) A) - entropy_bonus H + value_weight (V - R)^2 / 2,

    r being the ratio of the new to the old probability of the action, A the advantage, H the entropy of the action
    distribution, V the value and R the lambda-return. The policy goes through each trial from its first step, with the
    memory of its present parameters, and the gradient runs back through all of it. Deviation from Duan et al. (2016):
    PPO with a critic on the same memory, instead of TRPO.
    """

    step_size: float = setting(0.001, "step size of Adam", more_than=0, flag="rl2_step_size")
    epochs: int = setting(5, "passes over the trials", at_least=1, flag="rl2_epochs")
    minibatches: int = setting(4, "updates of a pass, each on an equal part of the trials", at_least=1)
    clip: float = setting(
        0.2,
        "change of a probability ratio beyond which it gains nothing",
        more_than=0,
        at_most=1,
        flag="rl2_clip",
    )
    entropy_bonus: float = setting(0.01, "weight of the entropy of the action distribution", at_least=0)
    value_weight: float = setting(0.5, "weight of the squared error of values", at_least=0)
    max_gradient_norm: float = setting(0.5, "largest norm of a gradient", more_than=0)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class TrialObjective:
    """The loss of an iteration's trials, as a function of the parameters that a policy holds.

    Attributes:
        policy: see `metarl.rl.rl2.policies`.
        action_distribution: the family of its outputs.
        trials: of the iteration.
        advantages: (M, L), standardised.
        returns: lambda-returns in the unit of the policy's values, (M, L).
        settings: weights and clip.
        chunk: trials that are gone through at a time; other chunks are computed beside them.
    """

    policy: nn.Module
    action_distribution: ActionDistribution
    trials: Trials
    advantages: Tensor
    returns: Tensor
    settings: TrialPPO
    chunk: int

    def gradient(self, trials: Tensor) -> tuple[list[Tensor], dict[str, float]]:
        """The gradient of the loss of some of the trials, (B,), by parameter, and the metrics of `_terms`."""
        steps = self.trials.valid[trials].sum()

        def of_chunk(part: slice) -> tuple[list[Tensor], dict[str, Tensor]]:
            module = own_copy(self.policy)
            terms = self._terms(module, trials[part])
            means = {name: term / steps for name, term in terms.items()}
            loss = means["surrogate"] - self.settings.entropy_bonus * means["entropy"]
            loss = loss + self.settings.value_weight * means["value_loss"]
            gradients = torch.autograd.grad(loss, list(_learned(module).values()), materialize_grads=True)
            return list(gradients), {name: mean.detach() for name, mean in means.items()}

        found = self._map(of_chunk, len(trials))
        gradients = [torch.stack(parts).sum(dim=0) for parts in zip(*(part for part, _ in found), strict=True)]
        return gradients, _summed([terms for _, terms in found])

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Means over all steps of all trials, see `_terms`."""
        trials, steps = torch.arange(len(self.advantages), device=self.advantages.device), self.trials.valid.sum()

        def of_chunk(part: slice) -> dict[str, Tensor]:
            with torch.no_grad():  # which is a property of each thread
                terms = self._terms(own_copy(self.policy), trials[part])
            return {name: term / steps for name, term in terms.items()}

        return _summed(self._map(of_chunk, len(trials)))

    def _map(self, function: Callable[[slice], Result], trials: int) -> list[Result]:
        """Results of each chunk. Chunks do not depend on the number of threads, and so neither does their sum."""
        return parallel_map(function, task_chunks(trials, self.chunk), self.advantages.device)

    def _terms(self, policy: nn.Module, chosen: Tensor) -> dict[str, Tensor]:
        """Sums over the steps of some trials: surrogate loss, entropy, squared error of values, KL(old || new)."""
        trials, family = self.trials.at(chosen), self.action_distribution
        advantages, returns, valid = self.advantages[chosen], self.returns[chosen], trials.valid
        dist_params, values, _ = policy(trials.inputs, None)
        ratios = torch.exp(torch.where(valid, family.log_prob(dist_params, trials.actions) - trials.log_probs, 0))
        clipped = ratios.clamp(1 - self.settings.clip, 1 + self.settings.clip)
        terms = {
            "surrogate": -torch.minimum(ratios * advantages, clipped * advantages),
            "entropy": family.entropy(dist_params),
            "value_loss": 0.5 * (values - returns).square(),
            "kl": family.kl(trials.dist_params, dist_params).detach(),
            "clipped_share": (ratios != clipped).to(values.dtype),
        }
        return {name: torch.where(valid, term, 0).sum() for name, term in terms.items()}


def update(
    objective: TrialObjective, adam: AdamState, rng: np.random.Generator
) -> tuple[Parameters, AdamState, UpdateOutcome]:
    """Take the Adam steps of an iteration on the parameters that the objective's policy holds, in place.

    Args:
        objective: of the iteration's trials.
        adam: the state of Adam, which stays as it is.
        rng: deals the trials to minibatches.

    Returns:
        the parameters, the new state of Adam, and what happened; the gradient norm is that of the first step, before
        it is scaled down.
    """
    settings, policy = objective.settings, objective.policy
    parameters = _learned(policy)
    first: tuple[float, dict[str, float]] | None = None
    for trials in _minibatches(len(objective.advantages), settings, rng):
        gradients, metrics = objective.gradient(trials.to(objective.advantages.device))
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in gradients]))
        first = first or (norm.item(), metrics)
        if not norm.isfinite():
            raise NonFiniteError("the gradient of the trials' loss is not finite")
        scale = (settings.max_gradient_norm / (norm + 1e-6)).clamp(max=1.0)
        moved, adam = adam_step(
            parameters,
            dict(zip(parameters, [part * scale for part in gradients], strict=True)),
            adam,
            settings.step_size,
        )
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(moved[name])
    assert first is not None, "there is at least one epoch"
    after = objective.metrics()
    details = {name: after[name] for name in ("entropy", "value_loss", "clipped_share")}
    norm_before, before = first
    outcome = UpdateOutcome("accepted", before["surrogate"], after["surrogate"], after["kl"], norm_before, details)
    return {name: value.detach().clone() for name, value in parameters.items()}, adam, outcome


def _learned(policy: nn.Module) -> Parameters:
    """The parameters of a policy that are not frozen, themselves."""
    return {name: value for name, value in policy.named_parameters() if value.requires_grad}


def _minibatches(trials: int, settings: TrialPPO, rng: np.random.Generator) -> Iterator[Tensor]:
    """The numbers of the trials of each minibatch of each epoch; parts whose sizes differ by one at most."""
    for _ in range(settings.epochs):
        order = rng.permutation(trials)
        for part in np.array_split(order, min(settings.minibatches, trials)):
            yield torch.from_numpy(part)


def _summed(parts: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: float(torch.stack([part[name] for part in parts]).sum()) for name in parts[0]}
