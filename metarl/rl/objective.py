"""The meta-objective: how well the adapted policies do, as a function of the meta-parameters alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from metarl.core.adaptation import adapt_step, adaptation_path
from metarl.core.ambient import in_standard_modes
from metarl.core.distributed import ALONE, Processes
from metarl.core.errors import NonFiniteError
from metarl.core.jacobian import Jacobian
from metarl.core.meta_gradient import pull_back, reptile_gradient
from metarl.core.parallel import Item, Result, parallel_map, task_chunks, workers
from metarl.core.parameters import Parameters, expand_over_tasks, ravel, unravel
from metarl.core.rules import AdaptationRule
from metarl.rl.curvature import Curvature
from metarl.rl.episodes import Samples
from metarl.rl.estimators import EPISODIC, Estimator, PolicyModel, sampling_term, surrogate


@dataclass(frozen=True)
class MetaObjective:
    """Surrogate loss of the post-adaptation policies and their KL from the sampling policies, averaged over tasks.

        L(theta) = 1/M sum_m sum_s w_s surrogate(phi_{m,s}(theta); query_{m,s})
        KL(theta) = 1/M sum_m sum_s w_s sum_n w_n KL(p_old(. | o_n) || p(. | o_n; phi_{m,s}(theta)))

    where phi_{m,s} are the parameters of task m after inner step s; by default those after the last step alone count.
    E-MAML's `sampling_term` joins L where outcomes are given. Theta is one flat vector here.

    Tasks are handled in chunks that suit the cache, and divided over processes. Each has its own loss and gradient, and
    these are added in float64: rounded to float32 the sum is the same in any order. So neither chunks nor processes
    change a bit, where a task's own numbers do not depend on those computed beside it: on a CPU.

    Attributes:
        model: policy, family of its outputs and inner loss.
        rule: of the inner loop.
        like: meta-parameters, for their names and shapes.
        supports: data of each of the S inner steps, M tasks each.
        queries: data after inner step s, M tasks each, by number s of every step that counts.
        weights: w_s, by number of the same steps; they sum to 1.
        chunk: tasks handled at a time.
        outcomes: (M,), see `metarl.rl.estimators.sampling_term`; None leaves the term out.
        processes: whose tasks the means are over; each holds the data of its own, and gets the same results.
        adapted: phi_1 ... phi_S (M, ...) that theta leads to where the episodes were sampled, if they are known; saves
            `kl_products` computing them.
    """

    model: PolicyModel
    rule: AdaptationRule
    like: Parameters
    supports: Sequence[Samples]
    queries: Mapping[int, Samples]
    weights: Mapping[int, float]
    chunk: int
    outcomes: Tensor | None = None
    processes: Processes = ALONE
    adapted: Sequence[Parameters] | None = None

    _all_tasks: int = field(init=False, repr=False)  # of all processes

    def __post_init__(self) -> None:
        own = torch.tensor(len(self._last_query().weights))
        object.__setattr__(self, "_all_tasks", int(self.processes.all_reduce_sum(own)))

    @in_standard_modes
    def loss_and_gradient(
        self, vector: Tensor, outer: Estimator = surrogate, penalties: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return L, (), and its gradient, (n,), through the adaptation.

        Args:
            vector: theta.
            outer: what stands for the surrogate in L.
            penalties: (S,), weights of `inner_kls` in L; None for none.
        """

        def of_chunk(task_slice: slice) -> tuple[Tensor, Tensor]:
            # the inner loop, with its graph back to theta
            theta = self._leaves(vector, task_slice)
            path = self._path(theta, self.supports, task_slice)

            # losses and their gradients at the adapted parameters, cut off from the inner loop
            points = [_detached(phi) for phi in path]
            loss = self._over_queries(points, task_slice, partial(outer, self.model.action_distribution))
            loss = loss + self._sampling_terms(points, task_slice)
            if penalties is not None:
                loss = loss + penalties @ self._inner_kls(points, task_slice)
            leaves = [value for point in points for value in point.values()]
            found = iter(torch.autograd.grad(loss.sum(), leaves, materialize_grads=True))

            # these gradients, pulled back through the inner loop to theta
            cotangents = {step: {name: next(found) for name in point} for step, point in enumerate(points)}
            return loss.detach(), _sum_over_tasks(list(pull_back(path, theta, cotangents).values()))

        losses, gradients = zip(*self._map(of_chunk, self._chunks(self.chunk)), strict=True)
        loss, gradient = torch.cat(losses), torch.stack(gradients).sum(dim=0)
        if not torch.isfinite(loss).all():
            task = self.processes.shard(self._all_tasks).start + int((~torch.isfinite(loss)).nonzero()[0])
            raise NonFiniteError(f"the loss of task {task} is not finite")
        mean = self._mean(torch.cat([gradient, loss.double().sum().view(1)]))
        gradient = mean[:-1]
        if not torch.isfinite(gradient).all():
            raise NonFiniteError("the meta-gradient is not finite")
        return mean[-1], gradient

    @in_standard_modes
    def evaluate(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return L and KL at theta, () both, without a graph."""
        theta = unravel(vector, self.like)

        def of_chunk(task_slice: slice) -> Tensor:
            path = self._adapted_after_each_step(theta, task_slice)
            with torch.no_grad():
                loss, kl = self._over_queries(path, task_slice, self._surrogate_and_kl)
                loss = loss + self._sampling_terms(path, task_slice)
            return torch.stack([loss, kl]).double().sum(dim=1)

        mean = self._mean(torch.stack(self._map(of_chunk, self._chunks(self.chunk))).sum(dim=0))
        return mean[0], mean[1]

    @in_standard_modes
    def inner_kls(self, vector: Tensor) -> Tensor:
        """How far the policies before each inner step are from those that sampled its support data, without a graph.

        1/M sum_m sum_n w_n KL(p_old(. | o_n) || p(. | o_n; phi_{m,s})) for s = 0 ... S - 1: (S,). The terms that ProMP
        penalises (Rothfuss et al. 2019).
        """
        theta = unravel(vector, self.like)

        def of_chunk(task_slice: slice) -> Tensor:
            path = self._adapted_after_each_step(theta, task_slice)
            with torch.no_grad():
                return self._inner_kls(path, task_slice)

        found = self._map(of_chunk, self._chunks(self.chunk))
        return self._mean(torch.cat(found, dim=1).double().sum(dim=1))

    @in_standard_modes
    def reptile_gradient(self, vector: Tensor) -> Tensor:
        """1/M sum_m (theta - phi_{m,S}), see `metarl.core.meta_gradient.reptile_gradient`; (n,)."""
        theta = unravel(vector, self.like)

        def of_chunk(task_slice: slice) -> Tensor:
            phi = self._adapted_after_each_step(theta, task_slice)[-1]
            own = expand_over_tasks(theta, task_slice.stop - task_slice.start)
            return _sum_over_tasks(list(reptile_gradient(own, phi).values()))

        return self._mean(torch.stack(self._map(of_chunk, self._chunks(self.chunk))).sum(dim=0))

    @in_standard_modes
    def kl_products(self, vector: Tensor, fraction: float, rng: np.random.Generator) -> Callable[[Tensor], Tensor]:
        """Return v -> H v, with H the Hessian of KL at the vector where the episodes were sampled.

        There KL is at its minimum 0, so its gradient in the adapted parameters vanishes and

            H = 1/M sum_m sum_s w_s J_{m,s}' F_{m,s} J_{m,s},    J_{m,s} = d phi_{m,s} / d theta,

        F_{m,s} being the Fisher matrix of the adapted policy; without second derivatives of J. H is always positive
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
        # the same share of the samples for every product, so that they all belong to one matrix
        thin = _thin_episodes if self.model.estimator in EPISODIC else _thin
        supports = [thin(support, fraction, rng) for support in self.supports]
        queries = {step: _thin(self.queries[step], fraction, rng) for step in sorted(self.queries)}

        def of_chunk(task_slice: slice) -> Curvature:
            return self._curvature(vector, supports, queries, task_slice)

        curvatures = self._map(of_chunk, self._chunks(round(self.chunk / fraction)))

        @in_standard_modes
        def product(v: Tensor) -> Tensor:
            direction = unravel(v, self.like)
            parts = self._map(lambda curvature: _sum_over_tasks(curvature.product(direction)), curvatures)
            return self._mean(torch.stack(parts).sum(dim=0))

        return product

    def _curvature(
        self, vector: Tensor, supports: Sequence[Samples], queries: Mapping[int, Samples], task_slice: slice
    ) -> Curvature:
        """The curvature of KL at theta from samples of some of the tasks."""
        # J: the inner loop, linearised at the parameters that all samples lead to
        theta = self._leaves(vector, task_slice)
        if self.adapted is None:
            anchors = self._adapted_after_each_step(unravel(vector, self.like), task_slice)[1:]
        else:
            anchors = [{name: value[task_slice] for name, value in phi.items()} for phi in self.adapted]
        path = self._path(theta, supports, task_slice, anchors)
        adaptation = Jacobian([value for step in queries for value in path[step].values()], list(theta.values()))

        # the network, from adapted parameters to distribution parameters
        leaves = {step: _detached(path[step]) for step in queries}
        outputs = [self.model.outputs(leaves[step], queries[step].of_tasks(task_slice)) for step in queries]
        network = Jacobian(outputs, [value for phi in leaves.values() for value in phi.values()])

        weights = [self.weights[step] * queries[step].weights[task_slice].unsqueeze(-1) for step in queries]
        fixed = [output.detach() for output in outputs]
        return Curvature(adaptation, network, self.model.action_distribution, fixed, weights)

    def _chunks(self, size: int) -> list[slice]:
        """Slices of at most that many tasks, an equal share for each thread of a CPU."""
        query = self._last_query()
        return task_chunks(len(query.weights), size, workers(query.weights.device))

    def _map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """What a function makes of each chunk."""
        return parallel_map(function, items, self._last_query().weights.device)

    def _last_query(self) -> Samples:
        return self.queries[len(self.supports)]

    def _mean(self, total: Tensor) -> Tensor:
        """The mean over the tasks of all processes, from the sum over those of this one."""
        return (self.processes.all_reduce_sum(total) / self._all_tasks).to(self._last_query().weights.dtype)

    def _over_queries(
        self, path: Sequence[Parameters], task_slice: slice, measure: Callable[[Tensor, Samples], Tensor]
    ) -> Tensor:
        """Weighted mean over the query data of a measure of the policies' outputs and the data, (..., m)."""
        total: Tensor | float = 0.0
        for step, weight in self.weights.items():
            data = self.queries[step].of_tasks(task_slice)
            total = total + weight * measure(self.model.outputs(path[step], data), data)
        assert isinstance(total, Tensor), "at least one step counts"
        return total

    def _surrogate_and_kl(self, outputs: Tensor, query: Samples) -> Tensor:
        """(2, m)."""
        return torch.stack([surrogate(self.model.action_distribution, outputs, query), self._kl(outputs, query)])

    def _kl(self, outputs: Tensor, data: Samples) -> Tensor:
        """From the policies that sampled the data to those of these outputs, (m,)."""
        return (data.weights * self.model.action_distribution.kl(data.dist_params, outputs)).sum(dim=1)

    def _sampling_terms(self, path: Sequence[Parameters], task_slice: slice) -> Tensor | float:
        """E-MAML's, (m,); 0 without outcomes."""
        if self.outcomes is None:
            return 0.0
        supports = [support.of_tasks(task_slice) for support in self.supports]
        outputs = [self.model.outputs(phi, data) for phi, data in zip(path, supports, strict=False)]
        return sampling_term(self.model.action_distribution, outputs, supports, self.outcomes[task_slice])

    def _inner_kls(self, path: Sequence[Parameters], task_slice: slice) -> Tensor:
        """Per inner step and task, (S, m)."""
        supports = [support.of_tasks(task_slice) for support in self.supports]
        rows = [self._kl(self.model.outputs(phi, data), data) for phi, data in zip(path, supports, strict=False)]
        empty = self._last_query().weights.new_zeros(0, task_slice.stop - task_slice.start)
        return torch.stack(rows) if rows else empty

    def _path(
        self,
        theta: Parameters,
        supports: Sequence[Samples],
        task_slice: slice,
        anchors: Sequence[Parameters] | None = None,
    ) -> list[Parameters]:
        data = [support.of_tasks(task_slice) for support in supports]
        return adaptation_path(self.model, self.rule, theta, data, anchors)

    def _leaves(self, vector: Tensor, task_slice: slice) -> Parameters:
        rows = expand_over_tasks(unravel(vector, self.like), task_slice.stop - task_slice.start)
        return {name: value.clone().requires_grad_() for name, value in rows.items()}

    def _adapted_after_each_step(self, theta: Parameters, task_slice: slice) -> list[Parameters]:
        """phi_0 ... phi_S for some of the tasks, without graphs."""
        theta = expand_over_tasks(theta, task_slice.stop - task_slice.start)
        path = [self.rule.start(theta)]
        for inner_step, support in enumerate(self.supports):
            samples = support.of_tasks(task_slice)
            phi, _ = adapt_step(self.model, self.rule, theta, path[-1], samples, inner_step)
            path.append(phi)
        return path


def _detached(phi: Parameters) -> Parameters:
    """The same values as leaves of a new graph."""
    return {name: value.detach().requires_grad_() for name, value in phi.items()}


def _sum_over_tasks(rows: Sequence[Tensor]) -> Tensor:
    return ravel([row.sum(dim=0, dtype=torch.float64) for row in rows])


def _thin(samples: Samples, fraction: float, rng: np.random.Generator) -> Samples:
    if fraction >= 1:
        return samples
    count = samples.weights.shape[1]
    positions = np.sort(rng.choice(count, max(1, round(fraction * count)), replace=False))
    return samples.at(torch.from_numpy(positions).to(samples.weights.device))


def _thin_episodes(samples: Samples, fraction: float, rng: np.random.Generator) -> Samples:
    if fraction >= 1 or samples.time_steps is None:
        return samples
    episodes = samples.weights.shape[1] // samples.time_steps
    chosen = np.sort(rng.choice(episodes, max(1, round(fraction * episodes)), replace=False))
    return samples.of_episodes(torch.from_numpy(chosen).to(samples.weights.device))
