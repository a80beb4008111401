"""The meta-objective: how well the adapted policies do, as a function of the meta-parameters alone."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from metarl.core.adaptation import AdaptationRule, adapt_step, adaptation_path
from metarl.core.distributed import ALONE, Processes
from metarl.core.errors import NonFiniteError
from metarl.core.jacobian import Jacobian
from metarl.core.parallel import Item, Result, parallel_map, task_chunks, workers
from metarl.core.parameters import Parameters, call_per_task, expand_over_tasks, ravel, unravel
from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.episodes import Samples
from metarl.rl.estimators import EPISODIC, Estimator, policy_loss, sampling_term, surrogate


class MetaObjective:
    """Surrogate loss of the post-adaptation policies and their KL from the sampling policies, averaged over tasks.

        L(theta) = 1/M sum_m surrogate(phi_m(theta); query_m)
        KL(theta) = 1/M sum_m sum_n w_n KL(p_old(. | o_n) || p(. | o_n; phi_m(theta)))

    where phi_m adapts theta on the support data of task m; E-MAML's `sampling_term` joins L where outcomes are given.
    With `earlier` query data both are means over the policies after each inner step, all of the same weight: MAML++'s
    multi-step loss (Antoniou et al. 2019) without its annealing. Theta is one flat vector here. Tasks are handled in
    chunks that suit the cache, and divided over processes. Each has its own loss and gradient, and these are added in
    float64: rounded to float32 the sum is the same in any order. So neither chunks nor processes change a bit, where a
    task's own numbers do not depend on those computed beside it: on a CPU.
    """

    def __init__(
        self,
        policy: nn.Module,
        distribution: ActionDistribution,
        estimator: Estimator,
        rule: AdaptationRule,
        like: Parameters,
        supports: Sequence[Samples],
        query: Samples,
        chunk: int,
        outcomes: Tensor | None = None,
        processes: Processes = ALONE,
        adapted: Sequence[Parameters] | None = None,
        earlier: Sequence[Samples] = (),
    ):
        """Fix the data.

        Args:
            policy, distribution: what acts, and the family of its outputs.
            estimator, rule: of the inner loop.
            like: meta-parameters, for their names and shapes.
            supports: data of the S inner steps, M tasks each.
            query: data after adaptation.
            chunk: tasks handled at a time.
            outcomes: (M,), see `metarl.rl.estimators.sampling_term`; None leaves the term out.
            processes: whose tasks the means are over; each holds the data of its own, and gets the same results.
            adapted: phi_1 ... phi_S (M, ...) that theta leads to where the episodes were sampled, if they are known;
                saves `kl_products` computing them.
            earlier: data after inner steps 1 ... S - 1, if the policies after them count too; else none.
        """
        self.policy, self.distribution, self.estimator, self.rule = policy, distribution, estimator, rule
        self.like, self.supports, self.query, self.outcomes = like, supports, query, outcomes
        self.queries = [*earlier, query]
        self.inner_loss = policy_loss(policy, distribution, estimator)
        self.tasks = len(query.weights)
        self.processes, self.adapted = processes, adapted
        self.all_tasks = int(processes.sum(torch.tensor(self.tasks)))
        self.chunk = chunk
        self.chunks = self._chunks(chunk)

    def loss_and_gradient(
        self, vector: Tensor, outer: Estimator = surrogate, penalties: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """L and its gradient, through the adaptation.

        Args:
            vector: theta.
            outer: what stands for the surrogate in L.
            penalties: (S,), weights of `inner_kls` in L; None for none.
        """

        def of_chunk(tasks: slice) -> tuple[Tensor, Tensor]:
            theta = self._leaves(vector, tasks)
            path = self._path(theta, self.supports, tasks)
            loss = self._over_queries(path, tasks, partial(outer, self.distribution))
            loss = loss + self._sampling_terms(path, tasks)
            if penalties is not None:
                loss = loss + penalties @ self._inner_kls(path, tasks)
            gradients = torch.autograd.grad(loss.sum(), list(theta.values()), materialize_grads=True)
            return loss.detach(), _sum_over_tasks(gradients)

        losses, gradients = zip(*self._map(of_chunk, self.chunks), strict=True)
        loss, gradient = torch.cat(losses), torch.stack(gradients).sum(dim=0)
        if not torch.isfinite(loss).all():
            task = self.processes.share(self.all_tasks).start + int((~torch.isfinite(loss)).nonzero()[0])
            raise NonFiniteError(f"the loss of task {task} is not finite")
        mean = self._mean(torch.cat([gradient, loss.double().sum().view(1)]))
        gradient = mean[:-1]
        if not torch.isfinite(gradient).all():
            raise NonFiniteError("the meta-gradient is not finite")
        return mean[-1], gradient

    def evaluate(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """L and KL, without a graph."""
        theta = unravel(vector, self.like)

        def of_chunk(tasks: slice) -> Tensor:
            path = self._adapted_after_each_step(theta, tasks)
            with torch.no_grad():
                loss, kl = self._over_queries(path, tasks, self._surrogate_and_kl)
                loss = loss + self._sampling_terms(path, tasks)
            return torch.stack([loss, kl]).double().sum(dim=1)

        mean = self._mean(torch.stack(self._map(of_chunk, self.chunks)).sum(dim=0))
        return mean[0], mean[1]

    def inner_kls(self, vector: Tensor) -> Tensor:
        """How far the policies before each inner step are from those that sampled its support data, without a graph.

        1/M sum_m sum_n w_n KL(p_old(. | o_n) || p(. | o_n; phi_{m,s})) for s = 0 ... S - 1: (S,). The terms that ProMP
        penalises (Rothfuss et al. 2019).
        """
        theta = unravel(vector, self.like)

        def of_chunk(tasks: slice) -> Tensor:
            path = self._adapted_after_each_step(theta, tasks)
            with torch.no_grad():
                return self._inner_kls(path, tasks)

        return self._mean(torch.cat(self._map(of_chunk, self.chunks), dim=1).double().sum(dim=1))

    def displacement(self, vector: Tensor) -> Tensor:
        """1/M sum_m (phi_m - theta), 0 for meta-parameters that are not the module's (Nichol et al. 2018); (n,)."""
        theta = unravel(vector, self.like)

        def of_chunk(tasks: slice) -> Tensor:
            phi = self._adapted_after_each_step(theta, tasks)[-1]
            still = {name: value.new_zeros(1, *value.shape) for name, value in theta.items()}
            moved = {name: value - theta[name] for name, value in phi.items()}
            return _sum_over_tasks(list({**still, **moved}.values()))

        return self._mean(torch.stack(self._map(of_chunk, self.chunks)).sum(dim=0))

    def kl_products(self, vector: Tensor, fraction: float, rng: np.random.Generator) -> Callable[[Tensor], Tensor]:
        """Return v -> H v, with H the Hessian of KL at the vector where the episodes were sampled.

        There KL is at its minimum 0, so its gradient in the adapted parameters vanishes and

            H = 1/M sum_m J_m' F_m J_m,    J_m = d phi_m / d theta,    F_m the Fisher matrix of the adapted policy,

        or the mean of this over the inner steps whose policies count; without second derivatives of J: always positive
        semi-definite, and the Hessian itself where the estimator's derivative is that of its own inner step (`score`,
        `likelihood-ratio`). With others J is what the meta-gradient runs through (`lvc`, `dice`, first order), so H is
        that of another function than the line search measures.

        Args:
            vector: theta when the episodes were sampled.
            fraction: of the samples that enter F and the inner Hessians within J, drawn without replacement: single
                steps, or whole episodes for the inner Hessians of an estimator that couples the steps of an episode.
                The adapted parameters, at which both are taken, come from all samples all the same. F and each inner
                Hessian then estimate what all samples give, without bias where tasks have equally many samples; so H
                has sampling noise, and a bias of the order of alpha^2 times the variance of the inner Hessian. The line
                search that follows measures loss and KL on all samples: only the direction of the step feels the noise.
            rng: draws the samples.
        """
        thin = _thin_episodes if self.estimator in EPISODIC else _thin
        supports = [thin(support, fraction, rng) for support in self.supports]
        queries = [_thin(query, fraction, rng) for query in self.queries]

        def maps_of_chunk(tasks: slice) -> tuple[slice, Jacobian, Jacobian, list[Tensor]]:
            theta = self._leaves(vector, tasks)
            if self.adapted is None:
                anchors = self._adapted_after_each_step(unravel(vector, self.like), tasks)[1:]
            else:
                anchors = [{name: value[tasks] for name, value in phi.items()} for phi in self.adapted]
            path = self._path(theta, supports, tasks, anchors)[-len(queries) :]
            leaves = [{name: value.detach().requires_grad_() for name, value in phi.items()} for phi in path]
            outputs = [
                call_per_task(self.policy, phi, query.observations[tasks])
                for phi, query in zip(leaves, queries, strict=True)
            ]
            adaptation = Jacobian([value for phi in path for value in phi.values()], list(theta.values()))
            network = Jacobian(outputs, [value for phi in leaves for value in phi.values()])
            return tasks, adaptation, network, [output.detach() for output in outputs]

        maps = self._map(maps_of_chunk, self._chunks(round(self.chunk / fraction)))

        def product(v: Tensor) -> Tensor:
            direction = unravel(v, self.like)

            def of_chunk(chunk: tuple[slice, Jacobian, Jacobian, list[Tensor]]) -> Tensor:
                tasks, adaptation, network, outputs = chunk
                tangents = expand_over_tasks(direction, tasks.stop - tasks.start)
                moved = network.product(adaptation.product(list(tangents.values())))
                metrics = [
                    query.weights[tasks].unsqueeze(-1) / len(queries) * self.distribution.fisher_product(output, change)
                    for query, output, change in zip(queries, outputs, moved, strict=True)
                ]
                return _sum_over_tasks(adaptation.transposed_product(network.transposed_product(metrics)))

            return self._mean(torch.stack(self._map(of_chunk, maps)).sum(dim=0))

        return product

    def _chunks(self, size: int) -> list[slice]:
        """Of at most that many tasks, an equal share for each thread of a CPU."""
        return task_chunks(self.tasks, size, workers(self.query.weights.device))

    def _map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """What a function makes of each chunk."""
        return parallel_map(function, items, self.query.weights.device)

    def _mean(self, total: Tensor) -> Tensor:
        """The mean over the tasks of all processes, from the sum over those of this one."""
        return (self.processes.sum(total) / self.all_tasks).to(self.query.weights.dtype)

    def _over_queries(
        self, path: Sequence[Parameters], tasks: slice, figure: Callable[[Tensor, Samples], Tensor]
    ) -> Tensor:
        """Mean over the query data of a figure of the policies' outputs and the data, (..., m)."""
        figures = []
        for phi, query in zip(path[-len(self.queries) :], self.queries, strict=True):
            data = query.of_tasks(tasks)
            figures.append(figure(call_per_task(self.policy, phi, data.observations), data))
        return torch.stack(figures).mean(dim=0)

    def _surrogate_and_kl(self, outputs: Tensor, query: Samples) -> Tensor:
        """(2, m)."""
        return torch.stack([surrogate(self.distribution, outputs, query), self._kl(outputs, query)])

    def _kl(self, outputs: Tensor, data: Samples) -> Tensor:
        """From the policies that sampled the data to those of these outputs, (m,)."""
        return (data.weights * self.distribution.kl(data.distribution, outputs)).sum(dim=1)

    def _sampling_terms(self, path: Sequence[Parameters], tasks: slice) -> Tensor | float:
        """E-MAML's, (m,); 0 without outcomes."""
        if self.outcomes is None:
            return 0.0
        supports = [support.of_tasks(tasks) for support in self.supports]
        outputs = [
            call_per_task(self.policy, phi, data.observations) for phi, data in zip(path, supports, strict=False)
        ]
        return sampling_term(self.distribution, outputs, supports, self.outcomes[tasks])

    def _inner_kls(self, path: Sequence[Parameters], tasks: slice) -> Tensor:
        """Per inner step and task, (S, m)."""
        rows = []
        for phi, support in zip(path, self.supports, strict=False):  # the path is one longer
            data = support.of_tasks(tasks)
            rows.append(self._kl(call_per_task(self.policy, phi, data.observations), data))
        return torch.stack(rows) if rows else self.query.weights.new_zeros(0, tasks.stop - tasks.start)

    def _path(
        self,
        theta: Parameters,
        supports: Sequence[Samples],
        tasks: slice,
        anchors: Sequence[Parameters] | None = None,
    ) -> list[Parameters]:
        data = [support.of_tasks(tasks) for support in supports]
        return adaptation_path(self.inner_loss, self.rule, theta, data, anchors)

    def _leaves(self, vector: Tensor, tasks: slice) -> Parameters:
        rows = expand_over_tasks(unravel(vector, self.like), tasks.stop - tasks.start)
        return {name: value.clone().requires_grad_() for name, value in rows.items()}

    def _adapted_after_each_step(self, theta: Parameters, tasks: slice) -> list[Parameters]:
        """phi_0 ... phi_S for some of the tasks, without graphs."""
        theta = expand_over_tasks(theta, tasks.stop - tasks.start)
        stages = [self.rule.start(theta)]
        for step, support in enumerate(self.supports):
            samples = support.of_tasks(tasks)
            phi, _ = adapt_step(self.inner_loss, self.rule, theta, stages[-1], samples, step)
            stages.append(phi)
        return stages


def _sum_over_tasks(rows: Sequence[Tensor]) -> Tensor:
    return ravel([row.sum(dim=0, dtype=torch.float64) for row in rows])


def _thin(samples: Samples, fraction: float, rng: np.random.Generator) -> Samples:
    if fraction >= 1:
        return samples
    count = samples.weights.shape[1]
    positions = np.sort(rng.choice(count, max(1, round(fraction * count)), replace=False))
    return samples.at(torch.from_numpy(positions).to(samples.weights.device))


def _thin_episodes(samples: Samples, fraction: float, rng: np.random.Generator) -> Samples:
    if fraction >= 1 or samples.steps is None:
        return samples
    episodes = samples.weights.shape[1] // samples.steps
    chosen = np.sort(rng.choice(episodes, max(1, round(fraction * episodes)), replace=False))
    return samples.of_episodes(torch.from_numpy(chosen).to(samples.weights.device))
