"""The meta-objective: how well the adapted policies do, as a function of the meta-parameters alone."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from metarl.adaptation import AdaptationRule, Loss, adapt, adapt_step
from metarl.distributions import ActionDistribution
from metarl.episodes import NonFiniteError, Samples, task_chunks
from metarl.estimators import surrogate
from metarl.jacobian import Jacobian
from metarl.parameters import Parameters, call_per_task, ravel, unravel


class MetaObjective:
    """Surrogate loss of the post-adaptation policies and their KL from the sampling policies, averaged over tasks.

        L(theta) = 1/M sum_m surrogate(phi_m(theta); query_m)
        KL(theta) = 1/M sum_m sum_n w_n KL(p_old(. | o_n) || p(. | o_n; phi_m(theta)))

    where phi_m adapts theta on the support data of task m. Theta is one flat vector here; tasks are handled in chunks
    that suit the cache, which changes nothing but rounding.
    """

    def __init__(
        self,
        policy: nn.Module,
        distribution: ActionDistribution,
        inner_loss: Loss[Samples],
        rule: AdaptationRule,
        like: Parameters,
        supports: Sequence[Samples],
        query: Samples,
        chunk: int,
    ):
        """Fix the data.

        Args:
            policy, distribution: what acts, and the family of its outputs.
            inner_loss, rule: of the inner loop.
            like: meta-parameters, for their names and shapes.
            supports: data of the S inner steps, M tasks each.
            query: data after adaptation.
            chunk: tasks handled at a time.
        """
        self.policy, self.distribution, self.inner_loss, self.rule = policy, distribution, inner_loss, rule
        self.like, self.supports, self.query = like, supports, query
        self.tasks = len(query.weights)
        self.chunk = chunk
        self.chunks = task_chunks(self.tasks, chunk)

    def loss_and_gradient(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """L and its gradient, through the adaptation."""
        losses, gradient = [], torch.zeros_like(vector)
        for tasks in self.chunks:
            theta = self._leaves(vector)
            phi = self._adapt(theta, self.supports, tasks)
            outputs = call_per_task(self.policy, phi, self.query.observations[tasks])
            loss = surrogate(self.distribution, outputs, self.query.of_tasks(tasks))
            losses.append(loss.detach())
            gradient += ravel(
                torch.autograd.grad(loss.sum() / self.tasks, list(theta.values()), materialize_grads=True)
            )
        loss = torch.cat(losses)
        if not torch.isfinite(loss).all():
            raise NonFiniteError(f"the loss of task {int((~torch.isfinite(loss)).nonzero()[0])} is not finite")
        if not torch.isfinite(gradient).all():
            raise NonFiniteError("the meta-gradient is not finite")
        return loss.mean(), gradient

    def evaluate(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """L and KL, without a graph."""
        theta = unravel(vector, self.like)
        loss, kl = torch.zeros_like(vector[0]), torch.zeros_like(vector[0])
        for tasks in self.chunks:
            phi = self._adapted_after_each_step(theta, tasks)[-1]
            query = self.query.of_tasks(tasks)
            with torch.no_grad():
                outputs = call_per_task(self.policy, phi, query.observations)
                loss += surrogate(self.distribution, outputs, query).sum()
                kl += (query.weights * self.distribution.kl(query.distribution, outputs)).sum()
        return loss / self.tasks, kl / self.tasks

    def kl_products(self, vector: Tensor, fraction: float, rng: np.random.Generator) -> Callable[[Tensor], Tensor]:
        """Return v -> H v, with H the Hessian of KL at the vector where the episodes were sampled.

        There KL is at its minimum 0, so its gradient in the adapted parameters vanishes and

            H = 1/M sum_m J_m' F_m J_m,    J_m = d phi_m / d theta,    F_m the Fisher matrix of the adapted policy,

        without second derivatives of J: exactly the Hessian, always positive semi-definite.

        Args:
            vector: theta when the episodes were sampled.
            fraction: of the samples that enter F and the inner Hessians within J, drawn without replacement. The
                adapted parameters, at which both are taken, come from all samples all the same. F and each inner
                Hessian are then unbiased estimates of what all samples give, so H has sampling noise, and a bias of
                the order of alpha^2 times the variance of the inner Hessian. The line search that follows measures
                loss and KL on all samples: only the direction of the step feels the noise.
            rng: draws the samples.
        """
        supports, query = (
            [_thin(support, fraction, rng) for support in self.supports],
            _thin(self.query, fraction, rng),
        )
        maps = []
        for tasks in task_chunks(self.tasks, round(self.chunk / fraction)):
            theta = self._leaves(vector)
            anchors = self._adapted_after_each_step(theta, tasks)[1:] if fraction < 1 else None
            phi = self._adapt(theta, supports, tasks, anchors)
            leaves = {name: value.detach().requires_grad_() for name, value in phi.items()}
            outputs = call_per_task(self.policy, leaves, query.observations[tasks])
            adaptation = Jacobian(list(phi.values()), list(theta.values()))
            network = Jacobian([outputs], list(leaves.values()))
            maps.append((adaptation, network, outputs.detach(), query.weights[tasks]))

        def product(v: Tensor) -> Tensor:
            tangents = list(unravel(v, self.like).values())
            total = torch.zeros_like(v)
            for adaptation, network, outputs, weights in maps:
                [moved] = network.product(adaptation.product(tangents))
                metric = weights.unsqueeze(-1) * self.distribution.fisher_product(outputs, moved)
                total += ravel(adaptation.transposed_product(network.transposed_product([metric])))
            return total / self.tasks

        return product

    def _adapt(
        self,
        theta: Parameters,
        supports: Sequence[Samples],
        tasks: slice,
        anchors: Sequence[Parameters] | None = None,
    ) -> Parameters:
        data = [support.of_tasks(tasks) for support in supports]
        return adapt(self.inner_loss, self.rule, theta, data, tasks.stop - tasks.start, anchors)

    def _leaves(self, vector: Tensor) -> Parameters:
        return {name: value.clone().requires_grad_() for name, value in unravel(vector, self.like).items()}

    def _adapted_after_each_step(self, theta: Parameters, tasks: slice) -> list[Parameters]:
        """phi_0 ... phi_S for some of the tasks, without graphs."""
        theta = {name: value.detach() for name, value in theta.items()}
        stages = [self.rule.start(theta, tasks.stop - tasks.start)]
        for step, support in enumerate(self.supports):
            samples = support.of_tasks(tasks)
            phi, _ = adapt_step(self.inner_loss, self.rule, theta, stages[-1], samples, step)
            stages.append(phi)
        return stages


def _thin(samples: Samples, fraction: float, rng: np.random.Generator) -> Samples:
    if fraction >= 1:
        return samples
    count = samples.weights.shape[1]
    positions = np.sort(rng.choice(count, max(1, round(fraction * count)), replace=False))
    return samples.at(torch.from_numpy(positions).to(samples.weights.device))
