"""What each inner step leaves behind: parameters, their episodes, and what learning sees of them."""

from dataclasses import dataclass

from torch import Tensor

from metarl.core.distributed import Processes
from metarl.core.parameters import Parameters
from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.advantages import Advantages, Values, discounted_returns, fit_values, standardised_advantages
from metarl.rl.episodes import Episodes, Samples, to_samples


@dataclass(frozen=True)
class AdaptationStep:
    """Parameters after some inner steps, and the episodes sampled with them.

    Attributes:
        parameters: phi_k, (M, ...).
        episodes: sampled with them.
        values: of their steps, as a baseline predicts them.
        samples: the same with advantages, as losses take them.
        advantage_std: what the advantages were divided by, (M,).
        gradient_norm: Euclidean norm of the inner gradient that led here, (M,); 0 before the first inner step.
    """

    parameters: Parameters
    episodes: Episodes
    values: Values
    samples: Samples
    advantage_std: Tensor
    gradient_norm: Tensor


@dataclass(frozen=True)
class LearningView:
    """Episodes as learning sees them: rewards with bonus and penalty, advantages, and samples of equal weight.

    Attributes:
        advantages: the settings.
        action_distribution: knows the bounds of actions.
        whole_episodes: keep the samples of an episode together, for losses that couple its steps.
    """

    advantages: Advantages
    action_distribution: ActionDistribution
    whole_episodes: bool

    def step(
        self,
        parameters: Parameters,
        episodes: Episodes,
        gradient_norm: Tensor,
        support: bool,
        processes: Processes,
        first_task: int = 0,
    ) -> AdaptationStep:
        """Return the adaptation step of M tasks. Collective: every rank must call it.

        Args:
            parameters: phi_k that the episodes were sampled with, (M, ...).
            episodes: M x E.
            gradient_norm: of the inner gradient that led to them, (M,).
            support: whether an inner step follows, so that the lambda of support data holds.
            processes: that hold other tasks.
            first_task: number of the first of these tasks, for errors.
        """
        settings, rewarded = self.advantages, self.rewarded(episodes)
        values = fit_values(rewarded, settings.discount, settings.bootstrap, settings.baseline, first_task)
        samples, std = self._samples(rewarded, values, support, processes)
        return AdaptationStep(parameters, episodes, values, samples, std, gradient_norm)

    def as_query(self, at: AdaptationStep, processes: Processes) -> Samples:
        """The samples of a step that another inner step has followed, with the advantages of the meta-gradient."""
        if self.advantages.support_lambda is None:
            return at.samples
        return self._samples(self.rewarded(at.episodes), at.values, False, processes)[0]

    def returns(self, episodes: Episodes) -> Tensor:
        """Discounted return of every episode, (M, E)."""
        return discounted_returns(self.rewarded(episodes).rewards, self.advantages.discount)[:, 0]

    def rewarded(self, episodes: Episodes) -> Episodes:
        """The episodes with the survival bonus and the bounds penalty in their rewards."""
        violation = self.action_distribution.bound_violation(episodes.actions)
        return episodes.with_bonus(self.advantages.survival_bonus - self.advantages.bounds_penalty * violation)

    def _samples(
        self, rewarded: Episodes, values: Values, support: bool, processes: Processes
    ) -> tuple[Samples, Tensor]:
        """Samples, and what their advantages were divided by, (M,)."""
        settings = self.advantages
        advantages, std = standardised_advantages(rewarded, values, settings.discount, settings.gae_lambda_of(support))
        samples = to_samples(rewarded, advantages, settings.weighting)
        return samples if self.whole_episodes else samples.packed(processes), std
