"""LLAMA: MAML with a Laplace approximation of each task's posterior (Grant et al. 2018).

    training     -log p(query | phi) + eta log det H(query),    phi as of MAML
    afterwards   w ~ N(phi, H(support)^-1)

H(data) = J' J / sigma^2 + lambda I is the curvature of -log p(data | w) - log p(w) at phi: the Fisher matrix of the
outputs' Jacobian J, for normal noise of standard deviation sigma, and the precision lambda of the prior. It is computed
exactly by matrices of the size of the data, not of the weights (deviation: the paper takes K-FAC's approximation of the
same matrix):

    log det H = n log lambda + log det(I + J J' / (lambda sigma^2))

Axes: M tasks, S samples, n weights; N examples with D outputs each are N D rows of J.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from metarl.core.parallel import own_copy
from metarl.core.parameters import Parameters
from metarl.core.settings import setting
from metarl.core.validation import require
from metarl.few_shot.method import Method
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.methods.noise import fixed_noise
from metarl.few_shot.predictive import Mixture, sample_variance
from metarl.few_shot.tasks import Examples, FewShotTasks


@dataclass(frozen=True)
class Llama(MAML):
    """MAML that is trained with the log-determinant of the curvature, and predicts by samples of a Gaussian posterior.

    The prior's precision is that of which the inner loop finds the MAP estimate to first order in the step size: with a
    mean squared error over N examples, S steps of size alpha from theta are one along
    -(2 alpha S sigma^2 / N) grad(-log p(support | theta)), so lambda = N / (2 alpha S sigma^2). Then J J' / (lambda
    sigma^2) does not depend on sigma. Only what the rule adapts is random.

    Half of the samples are drawn, the other half lie opposite, so that their mean is phi. They go through the module
    linearised at phi, f(phi) + J_x (w - phi), for which the Gaussian is the exact posterior; networks at sampled
    weights themselves disagree far more than data allow (deviation, and a known property of Laplace approximations
    with a Fisher matrix).

    Attributes:
        rule: gradient descent with one step size.
        criterion: a mean squared error whose noise has a standard deviation.
    """

    samples: int = setting(10, "draws from the posterior for a prediction, an even number", at_least=2)
    determinant_weight: float = setting(
        1e-6, "eta, weight of log det H beside the criterion's loss", at_least=0, source="paper"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.multi_step_iterations, "multi_step_iterations", self.multi_step_iterations, "0 with LLAMA")
        require(self.samples % 2 == 0, "samples", self.samples, "an even number")
        require(self.criterion.noise_std is not None, "criterion", self.criterion, "one with a noise_std")

    def states(self, theta: Parameters, support: Examples, inner_steps: int) -> list[Parameters]:
        """As of MAML, with the deviations w - phi of S samples, (M, S, n), under `deviations`."""
        found = super().states(theta, support, inner_steps)
        return [self._with_deviations(phi, support, step) for step, phi in enumerate(found)]

    def adapt(self, theta: Parameters, support: Examples) -> Parameters:
        """As of MAML, with the deviations, which are constants."""
        phi = super().adapt(theta, support)
        return self._with_deviations(phi, support, self.inner_steps)

    def predict(self, theta: Parameters, state: Parameters, inputs: Tensor) -> Tensor:
        """Return the outputs at phi, which are the mean of the distribution."""
        return super().predict(theta, _weights(state), inputs)

    def predictive(self, theta: Parameters, state: Parameters, inputs: Tensor) -> Mixture:
        """Return the linearised outputs of the samples, with the criterion's noise."""
        centre = self.predict(theta, state, inputs)
        jacobian = self.jacobian(_weights(state), inputs)
        shifts = (state["deviations"] @ jacobian.mT).view(len(centre), -1, *centre.shape[1:])
        means = centre.unsqueeze(1) + shifts
        return Mixture(means, sample_variance(means, self.noise_std))

    def loss(self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the criterion's loss on query examples plus eta log det H of them, and the metric."""
        phi = self._path(theta, tasks.support)[-1]
        loss, metric = self.criterion(MAML.predict(self, theta, phi, tasks.query.inputs), tasks.query.targets)
        if self.determinant_weight:
            jacobian = self.jacobian(phi, tasks.query.inputs)
            precision = self.prior_precision(tasks.support, self.inner_steps)
            loss = loss + self.determinant_weight * log_determinant(jacobian, precision, self.noise_std)
        return loss, metric

    def gradient(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[int, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """As of any method: the gradient of `loss`."""
        return Method.gradient(self, theta, tasks, schedule)

    def prior_precision(self, support: Examples, inner_steps: int) -> float:
        """Return lambda after so many inner steps; before the first, that of one step."""
        count = support.inputs.shape[1]
        return count / (2 * self.rule.step_size * max(1, inner_steps) * self.noise_std**2)  # type: ignore[attr-defined]

    def jacobian(self, phi: Parameters, inputs: Tensor) -> Tensor:
        """Return J, the derivatives of the outputs in what the rule adapts, (M, Q D, n)."""
        module = own_copy(self.module)
        names = self.rule.adapted_names(phi)
        shared = {name: value for name, value in phi.items() if name not in names}

        def outputs(adapted: Parameters, others: Parameters, of_task: Tensor) -> Tensor:
            return functional_call(module, {**others, **adapted}, (of_task,)).flatten()

        found = vmap(jacrev(outputs))({name: phi[name] for name in names}, shared, inputs)
        return torch.cat([found[name].flatten(2) for name in names], dim=2)

    def _with_deviations(self, phi: Parameters, support: Examples, inner_steps: int) -> Parameters:
        with torch.no_grad():
            jacobian = self.jacobian(phi, support.inputs)
            rows, size = jacobian.shape[1:]
            noise = fixed_noise(support.inputs, self.samples // 2, size + rows)
            precision = self.prior_precision(support, inner_steps)
            drawn = posterior_deviations(jacobian, precision, self.noise_std, noise)
        return {**phi, "deviations": torch.cat([drawn, -drawn], dim=1)}


def log_determinant(jacobian: Tensor, precision: float, noise_std: float) -> Tensor:
    """Return log det(J' J / sigma^2 + lambda I) of each task, (M,), for J (M, R, n)."""
    rows, size = jacobian.shape[1:]
    inner = torch.eye(rows).to(jacobian) + jacobian @ jacobian.mT / (precision * noise_std**2)
    factor = torch.linalg.cholesky(inner)
    prior = size * torch.log(torch.tensor(precision, dtype=jacobian.dtype, device=jacobian.device))
    return prior + 2 * factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)


def posterior_deviations(jacobian: Tensor, precision: float, noise_std: float, noise: Tensor) -> Tensor:
    """Turn standard normal numbers into draws from N(0, (J' J / sigma^2 + lambda I)^-1), (M, S, n).

    A draw e of the prior N(0, I / lambda) and a draw u of the data's noise give
    e - J' (J J' + lambda sigma^2 I)^-1 (J e + u), by a system of the size of the data (Matheron's rule).

    Args:
        jacobian: J (M, R, n).
        precision: lambda, of the prior.
        noise_std: sigma.
        noise: (S, n + R), the same for all tasks.
    """
    rows, size = jacobian.shape[1:]
    prior, data = (part.expand(len(jacobian), *part.shape) for part in noise.split([size, rows], dim=1))
    prior, data = prior / precision**0.5, data * noise_std
    gram = jacobian @ jacobian.mT
    system = gram / precision + noise_std**2 * torch.eye(rows).to(jacobian)
    solved = torch.linalg.solve(system, (prior @ jacobian.mT + data).mT)  # (M, R, S)
    return prior - (jacobian.mT @ solved).mT / precision


def _weights(state: Parameters) -> Parameters:
    return {name: value for name, value in state.items() if name != "deviations"}
