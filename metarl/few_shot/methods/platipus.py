"""PLATIPUS: probabilistic MAML (Finn, Xu and Levine 2018), whose start is drawn from a learned distribution.

    prior of a task       p = N(mu - gamma_p grad L(mu, support), sigma^2)
    approximate posterior q = N(mu - gamma_q grad L(mu, query), v^2)
    training              theta ~ q,  phi = inner steps from theta on the support,  loss = L(phi, query) + w KL(q || p)
    afterwards            theta ~ p, several times,  phi = inner steps from each on the support

L is the criterion's loss, the mean squared error of regression. Axes: M tasks, S samples.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.core.adaptation import adapt_step, adaptation_path, inner_gradient
from metarl.core.parameters import Parameters, parameters_of
from metarl.core.settings import setting
from metarl.core.validation import require
from metarl.few_shot.method import Method
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.methods.noise import NoisyTasks, fixed_noise, noise_of
from metarl.few_shot.methods.particles import call_particles, particle_losses
from metarl.few_shot.predictive import Mixture, sample_variance
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks

_PRIOR, _POSTERIOR = "log_std.prior.", "log_std.posterior."
_PRIOR_STEP, _POSTERIOR_STEP = "step_size.prior", "step_size.posterior"


@dataclass(frozen=True)
class Platipus(MAML):
    """MAML from a random start, trained by a variational bound (Finn, Xu and Levine 2018).

    Theta holds mu under the names of the module's parameters, the logarithms of the standard deviations sigma and v of
    each, and the step sizes gamma_p and gamma_q. In training a task's noise is one draw, which comes with the task;
    afterwards S draws are fixed numbers, the same for all tasks. A state holds S adapted networks (M, S, ...).

    Attributes:
        rule: the inner steps from theta to phi.
    """

    samples: int = setting(10, "networks that are drawn for a prediction", at_least=1)
    kl_weight: float = setting(0.1, "weight of the divergence between q and p", at_least=0, source="authors' setting")
    initial_std: float = setting(
        0.02, "standard deviation of weights before training", more_than=0, source="authors' setting"
    )
    prior_step_size: float = setting(0.01, "step size of the prior's mean before training", source="code")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.multi_step_iterations, "multi_step_iterations", self.multi_step_iterations, "0 with PLATIPUS")

    def meta_parameters(self) -> Parameters:
        """Return mu, the logarithms of both standard deviations, and both step sizes."""
        mean = parameters_of(self.module)
        spread = {
            prefix + name: torch.full_like(value, math.log(self.initial_std))
            for prefix in (_PRIOR, _POSTERIOR)
            for name, value in mean.items()
        }
        size = next(iter(mean.values())).new_tensor(self.prior_step_size)
        return {**mean, **spread, _PRIOR_STEP: size, _POSTERIOR_STEP: size.clone()}

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return tasks with the noise of one draw of the weights."""
        return NoisyTasks(task_distribution, self._size)

    def adapt(self, theta: Parameters, support: Examples) -> Parameters:
        """Return S networks (M, S, ...) that were drawn from the prior and adapted, differentiably in theta."""
        phi = self._drawn_from_prior(theta, support)
        return adaptation_path(self._sampled_loss, self.rule, phi, [support] * self.inner_steps)[-1]

    def states(self, theta: Parameters, support: Examples, inner_steps: int) -> list[Parameters]:
        """Return the networks after 0 ... S inner steps."""
        with torch.no_grad():
            states = [self._drawn_from_prior(theta, support)]
        for step in range(inner_steps):
            states.append(adapt_step(self._sampled_loss, self.rule, theta, states[-1], support, step)[0])
        return states

    def predict(self, theta: Parameters, state: Parameters, inputs: Tensor) -> Tensor:
        """Return the mean of the networks' outputs."""
        return call_particles(self, state, inputs).mean(dim=1)

    def predictive(self, theta: Parameters, state: Parameters, inputs: Tensor) -> Mixture:
        """Return the networks' outputs, with the criterion's noise."""
        means = call_particles(self, state, inputs)
        return Mixture(means, sample_variance(means, self.noise_std))

    def loss(self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Return L(phi, query) + w KL(q || p) for one draw from q, and the metric of that draw."""
        prior = self.prior_mean(theta, tasks.support)
        posterior = self._stepped(theta, tasks.query, _POSTERIOR_STEP)
        spread = {name: theta[_POSTERIOR + name].exp() for name in posterior}
        noise = self._as_parameters(noise_of(tasks.support, self._size), theta)
        start = {name: value + spread[name] * noise[name] for name, value in posterior.items()}
        phi = adaptation_path(self._loss_of, self.rule, start, [tasks.support] * self.inner_steps)[-1]
        outputs = self.call(phi, tasks.query.inputs)
        loss, metric = self.criterion(outputs, tasks.query.targets)
        divergence = [
            gaussian_divergence(value, theta[_POSTERIOR + name], prior[name], theta[_PRIOR + name])
            for name, value in posterior.items()
        ]
        return loss + self.kl_weight * torch.stack(divergence).sum(dim=0), metric

    def gradient(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[int, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """As of any method: the gradient of `loss`."""
        return Method.gradient(self, theta, tasks, schedule)

    def prior_mean(self, theta: Parameters, support: Examples) -> Parameters:
        """Return the mean of p given the support examples, (M, ...)."""
        return self._stepped(theta, support, _PRIOR_STEP)

    @property
    def _size(self) -> int:
        return sum(value.numel() for value in parameters_of(self.module).values())

    def _stepped(self, theta: Parameters, examples: Examples, step: str) -> Parameters:
        """mu - gamma grad L(mu), differentiably in theta as far as theta requires gradients."""
        mean = {name: value for name, value in theta.items() if not name.startswith((_PRIOR, _POSTERIOR, "step_size."))}
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            point = mean if differentiable else {n: v.detach().requires_grad_() for n, v in mean.items()}
            gradients = inner_gradient(self._loss_of, point, examples, differentiable and self.rule.second_order)
        return {n: v - theta[step].view(-1, *[1] * (v.ndim - 1)) * gradients[n] for n, v in mean.items()}

    def _drawn_from_prior(self, theta: Parameters, support: Examples) -> Parameters:
        """S draws from p, (M, S, ...)."""
        mean = self.prior_mean(theta, support)
        noise = self._as_parameters(fixed_noise(support.inputs, self.samples, self._size), theta)
        return {
            name: value.unsqueeze(1) + theta[_PRIOR + name].exp().unsqueeze(1) * noise[name]
            for name, value in mean.items()
        }

    def _as_parameters(self, noise: Tensor, theta: Parameters) -> Parameters:
        """Noise (R, n) in the shapes of the parameters, (R, ...)."""
        own = parameters_of(self.module)
        pieces = noise.split([value.numel() for value in own.values()], dim=1)
        return {name: piece.view(-1, *value.shape) for (name, value), piece in zip(own.items(), pieces, strict=True)}

    def _loss_of(self, phi: Parameters, examples: Examples) -> Tensor:
        """L, (M,)."""
        return self.criterion.loss(self.call(phi, examples.inputs), examples.targets)

    def _sampled_loss(self, phi: Parameters, examples: Examples) -> Tensor:
        """L, added up over the networks (M, S, ...) of each task, (M,)."""
        return particle_losses(self, call_particles(self, phi, examples.inputs), examples).sum(dim=1)


def gaussian_divergence(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """Return KL(N(mean, std^2) || N(other_mean, other_std^2)) of each task, (M,), summed over elements (M, ...)."""
    ratio, shift = 2 * (log_std - other_log_std), (mean - other_mean) / other_log_std.exp()
    return (ratio.exp() + shift.square() - 1 - ratio).flatten(1).sum(dim=1) / 2
