"""Ensembles of adapted networks: EMAML, and Bayesian MAML (Yoon et al. 2018), whose particles repel each other.

Axes: M tasks, P particles. Theta holds the particles' parameters (M, P, ...), and so does a state.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from metarl.core.parameters import Parameters, parameters_of
from metarl.core.settings import setting
from metarl.core.validation import require
from metarl.few_shot.method import Method
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.predictive import Mixture, sample_variance
from metarl.few_shot.tasks import Examples, FewShotTasks

_NOISE, _WEIGHTS = "log_precision.noise", "log_precision.weights"


@dataclass(frozen=True)
class EMAML(MAML):
    """P networks, each learned by MAML from the same tasks; the prediction is the mean of theirs.

    The losses of the networks are added up, so that their number changes nothing for each of them.

    Attributes:
        module: any of the members, as it computes what all of them compute.
        members: P modules, whose parameters are those before training.
    """

    members: nn.ModuleList = field(default_factory=nn.ModuleList)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.members) > 0, "members", self.members, "a ModuleList of one module or more")
        require(not self.multi_step_iterations, "multi_step_iterations", self.multi_step_iterations, "0 with particles")

    def meta_parameters(self) -> Parameters:
        """Return the members' parameters, (P, ...), and what the rule learns."""
        own = [parameters_of(member) for member in self.members]
        return self.rule.meta_parameters({name: torch.stack([of[name] for of in own]) for name in own[0]})

    def predict(self, theta: Parameters, state: Parameters, inputs: Tensor) -> Tensor:
        """Return the mean of the members' outputs."""
        return self.outputs(state, inputs).mean(dim=1)

    def predictive(self, theta: Parameters, state: Parameters, inputs: Tensor) -> Mixture:
        """Return the members' outputs, with the criterion's noise."""
        means = self.outputs(state, inputs)
        return Mixture(means, sample_variance(means, self.noise_std))

    def loss(self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the sum of the members' query losses, and the metric of their mean."""
        outputs = self.outputs(self.adapt(theta, tasks.support), tasks.query.inputs)
        with torch.no_grad():
            metric = self.criterion.metric(outputs.mean(dim=1), tasks.query.targets)
        return self._summed_loss(outputs, tasks.query), metric

    def gradient(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[int, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """As of any method: the gradient of `loss`."""
        return Method.gradient(self, theta, tasks, schedule)

    def outputs(self, phi: Parameters, inputs: Tensor) -> Tensor:
        """Return what each particle computes of its task's inputs (M, Q, ...): (M, P, Q, ...)."""
        return call_particles(self, phi, inputs)

    def _support_loss(self, phi: Parameters, support: Examples) -> Tensor:
        return self._summed_loss(self.outputs(phi, support.inputs), support)

    def _summed_loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        """The losses of outputs (M, P, N, ...), added up over particles, (M,)."""
        return particle_losses(self, outputs, examples).sum(dim=1)


@dataclass(frozen=True)
class BMAML(EMAML):
    """Stein variational gradient descent on a task's posterior, trained by the chaser loss (Yoon et al. 2018).

        log p(w, gamma, lambda | S) = sum_i log N(y_i; f(x_i, w), 1/gamma) + log N(w; 0, I/lambda) + log priors
        x_m' = x_m + alpha / P sum_j [k(x_j, x_m) grad log p(x_j | S) + grad_{x_j} k(x_j, x_m)]
        loss = sum_m |w_m(after S steps on the support) - w_m(after L further steps on support and query)|^2

    The particles x = (w, log gamma, log lambda) hold precisions of their own, with gamma priors. The second set of
    weights, the leader's, is a constant. The kernel is exp(-d^2 / h), with h the median of all d^2 over log P, constant
    too (Liu and Wang 2016). With one particle a step is one of gradient ascent to the MAP estimate.

    Attributes:
        rule: its step size and number of steps are those of the particles.
        leader_steps: L.
    """

    leader_steps: int = setting(1, "further steps of the leader, on support and query examples", at_least=1)
    initial_noise: float = setting(0.01, "variance of targets before training, 1 / gamma", more_than=0, source="code")
    noise_prior: tuple[float, ...] = setting((2.0, 0.2), "shape and rate of the prior of gamma", more_than=0)
    weight_prior: tuple[float, ...] = setting((2.0, 2.0), "shape and rate of the prior of lambda", more_than=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("noise_prior", "weight_prior"):
            require(len(getattr(self, name)) == 2, name, getattr(self, name), "two numbers, shape and rate")

    def meta_parameters(self) -> Parameters:
        """Return the members' parameters (P, ...), and the logarithms of their precisions, (P,)."""
        own = [parameters_of(member) for member in self.members]
        theta = {name: torch.stack([of[name] for of in own]) for name in own[0]}
        like = next(iter(theta.values())).new_ones(len(own))
        return self.rule.meta_parameters({**theta, _NOISE: -math.log(self.initial_noise) * like, _WEIGHTS: 0 * like})

    def adapt(self, theta: Parameters, support: Examples) -> Parameters:
        """Return the particles after S steps, differentiably in theta."""
        phi = self.rule.start(theta)
        for step in range(self.inner_steps):
            phi = self._moved(theta, phi, support, step, True)
        return phi

    def states(self, theta: Parameters, support: Examples, inner_steps: int) -> list[Parameters]:
        """Return the particles after 0 ... S steps."""
        states = [self.rule.start(theta)]
        for step in range(inner_steps):
            states.append(self._moved(theta, states[-1], support, step, False))
        return states

    def predictive(self, theta: Parameters, state: Parameters, inputs: Tensor) -> Mixture:
        """Return the particles' outputs, each with its own noise."""
        return Mixture(self.outputs(state, inputs), (-state[_NOISE]).exp())

    def loss(self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the chaser loss, and the metric of the mean prediction on query examples."""
        follower = self.adapt(theta, tasks.support)
        leader = {name: value.detach() for name, value in follower.items()}
        joined = tasks.support.joined(tasks.query)
        for step in range(self.leader_steps):
            leader = self._moved(theta, leader, joined, step, False)
        distance = [(follower[n] - leader[n].detach()).square().flatten(1).sum(dim=1) for n in self._weights(follower)]
        with torch.no_grad():
            metric = self.criterion.metric(self.predict(theta, follower, tasks.query.inputs), tasks.query.targets)
        return torch.stack(distance).sum(dim=0), metric

    def log_posterior(self, phi: Parameters, examples: Examples) -> Tensor:
        """Return log p of each particle given examples, up to a constant, as a density of the logarithms, (M, P)."""
        log_noise, log_weights = phi[_NOISE], phi[_WEIGHTS]
        errors = (self.outputs(phi, examples.inputs) - examples.targets.unsqueeze(1)).square().flatten(2)
        likelihood = errors.shape[2] / 2 * log_noise - log_noise.exp() / 2 * errors.sum(dim=2)
        squares = [phi[name].square().flatten(2).sum(dim=2) for name in self._weights(phi)]
        count = sum(phi[name][0, 0].numel() for name in self._weights(phi))
        weights = count / 2 * log_weights - log_weights.exp() / 2 * torch.stack(squares).sum(dim=0)
        priors = _log_gamma_prior(log_noise, *self.noise_prior) + _log_gamma_prior(log_weights, *self.weight_prior)
        return likelihood + weights + priors

    def _moved(
        self, theta: Parameters, phi: Parameters, examples: Examples, step: int, differentiable: bool
    ) -> Parameters:
        """The particles after one more step."""
        point = phi if differentiable else {name: value.detach().requires_grad_() for name, value in phi.items()}
        total = self.log_posterior(point, examples).sum()
        found = torch.autograd.grad(total, list(point.values()), create_graph=differentiable and self.rule.second_order)
        with torch.set_grad_enabled(differentiable):
            direction = stein_direction(_flat(point), _flat(dict(zip(point, found, strict=True))))
            pieces = direction.split([value[0, 0].numel() for value in point.values()], dim=2)
            ascent = {n: -piece.view_as(v) for (n, v), piece in zip(point.items(), pieces, strict=True)}
            return self.rule.update(theta, point, ascent, step)

    def _weights(self, phi: Parameters) -> list[str]:
        return [name for name in phi if name not in (_NOISE, _WEIGHTS)]


def stein_direction(particles: Tensor, gradients: Tensor) -> Tensor:
    """Return 1/P sum_j [k(x_j, x_m) g_j + grad_{x_j} k(x_j, x_m)], in which SVGD moves particle m (Liu and Wang 2016).

    k(x, y) = exp(-|x - y|^2 / h), h = median |x_i - x_j|^2 / log P over all P^2 pairs, so
    grad_{x_j} k(x_j, x_m) = 2 k (x_m - x_j) / h. The code of Yoon et al. (2018) leaves out the 2.

    Args:
        particles: x (M, P, n).
        gradients: g, of the log density at each of them, (M, P, n).
    """
    count = particles.shape[1]
    if count == 1:
        return gradients
    centred = particles - particles.mean(dim=1, keepdim=True).detach()  # so that little is lost in the difference
    norms = centred.square().sum(dim=2)
    squared = (norms.unsqueeze(1) + norms.unsqueeze(2) - 2 * centred @ centred.mT).clamp(min=0)
    width = kernel_width(squared.detach())
    kernel = torch.exp(-squared / width)
    repulsion = 2 / width * (centred * kernel.sum(dim=2, keepdim=True) - kernel @ centred)
    return (kernel @ gradients + repulsion) / count


def kernel_width(squared: Tensor) -> Tensor:
    """Return h of each task, (M, 1, 1): the median of squared distances (M, P, P) over log P."""
    return squared.flatten(1).quantile(0.5, dim=1).view(-1, 1, 1) / math.log(squared.shape[1])


def call_particles(method: Method, phi: Parameters, inputs: Tensor) -> Tensor:
    """Apply the module of a method with parameters (M, P, ...) to inputs (M, N, ...); return (M, P, N, ...)."""
    own = {n: phi[n].flatten(0, 1) for n, p in method.module.named_parameters() if p.requires_grad}
    tasks, count = next(iter(phi.values())).shape[:2]
    repeated = inputs.unsqueeze(1).expand(tasks, count, *inputs.shape[1:]).flatten(0, 1)
    return method.call(own, repeated).unflatten(0, (tasks, count))


def particle_losses(method: Method, outputs: Tensor, examples: Examples) -> Tensor:
    """Return the criterion's loss of each particle, (M, P), for outputs (M, P, N, ...)."""
    tasks, count = outputs.shape[:2]
    targets = examples.targets.unsqueeze(1).expand(tasks, count, *examples.targets.shape[1:])
    return method.criterion.loss(outputs.flatten(0, 1), targets.flatten(0, 1)).view(tasks, count)


def _log_gamma_prior(log_precision: Tensor, shape: float, rate: float) -> Tensor:
    """The log density of log x for x of a gamma distribution, up to a constant: shape log x - rate x."""
    return shape * log_precision - rate * log_precision.exp()


def _flat(parameters: Parameters) -> Tensor:
    """Parameters (M, P, ...) of each particle as one vector, (M, P, n)."""
    return torch.cat([value.flatten(2) if value.ndim > 2 else value.unsqueeze(2) for value in parameters.values()], 2)
