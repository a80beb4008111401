"""Gradient methods: MAML and its kin, Reptile, and a classifier that is fine-tuned.

What inner steps change and how is the adaptation rule's business, so one class is many methods:

    MAML, first-order           GradientDescent, with `second_order` or without
    Meta-SGD                    MetaSGD
    ANIL                        GradientDescent with `adapted` naming the last layer
    MAML++                      LayerStepSizes, with `multi_step_iterations`
    pretraining on all tasks    any rule with no inner steps in training

A state is the adapted parameters phi, a dict of tensors with a leading axis of M tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from metarl.core.adaptation import adapt_step, adaptation_path
from metarl.core.meta_gradient import pull_back, query_weights, reptile_gradient
from metarl.core.parallel import task_chunks
from metarl.core.parameters import Parameters, expand_over_tasks, parameters_of
from metarl.core.rules import AdaptationRule, GradientDescent
from metarl.core.settings import check_settings, setting
from metarl.core.validation import require, require_whole
from metarl.few_shot.criteria import nearest_neighbour
from metarl.few_shot.method import Method, call_module
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks, ImageBatches, tasks_per_chunk


@dataclass(frozen=True)
class MAML(Method):
    """Gradient steps on the support examples, differentiated through (Finn et al. 2017).

        phi_0 = theta,  phi_{s+1} = rule(phi_s, dL_support(phi_s)/dphi_s),  loss = sum_s w_s L_query(phi_s)

    where w_S = 1 and all others are 0, except with `multi_step_iterations`: then it is MAML++'s multi-step loss
    (Antoniou et al. 2019), whose weights move to the last step linearly, see `metarl.core.meta_gradient.query_weights`.

    Attributes:
        rule: the inner loop.
    """

    rule: AdaptationRule = GradientDescent()
    multi_step_iterations: int = setting(
        0, "iterations until the loss after the last inner step alone counts, not those after all steps", at_least=0
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def inner_steps(self) -> int:
        """S, inner steps in training."""
        return self.rule.inner_steps

    def meta_parameters(self) -> Parameters:
        """Return the module's parameters, and what the rule learns beside them."""
        return self.rule.meta_parameters(parameters_of(self.module))

    def adapt(self, theta: Parameters, support: Examples) -> Parameters:
        """Return phi_S."""
        return self._path(theta, support)[-1]

    def predict(self, theta: Parameters, state: Parameters, inputs: Tensor) -> Tensor:
        """Return the outputs of the adapted modules."""
        return self.call({**self.rule.start(theta), **state}, inputs)  # theta may hold buffers, too

    def states(self, theta: Parameters, support: Examples, inner_steps: int) -> list[Parameters]:
        """Return phi_0 ... phi_S; beyond the trained number of steps the rule decides on their size."""
        states = [self.rule.start(theta)]
        for step in range(inner_steps):
            states.append(adapt_step(self._support_loss, self.rule, theta, states[-1], support, step)[0])
        return states

    def at(self, iteration: int) -> Self:
        """Return the method with the step size that the rule has after so many iterations."""
        rule = self.rule.at(iteration)
        return self if rule is self.rule else replace(self, rule=rule)

    def schedule(self, iteration: int) -> dict[int, float]:
        """Return the weight w_s of the query loss after each inner step s that counts."""
        left = 1 - iteration / self.multi_step_iterations if iteration < self.multi_step_iterations else 0.0
        return query_weights(self.inner_steps, left)

    def gradient(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[int, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """Return the meta-gradient; loss and metric are those after the last inner step.

        It is that of `Method`, in two parts: the gradient of the query losses at the adapted parameters, pulled back
        through the inner loop. As the first part needs no second derivatives, it can take fewer tasks at a time.
        """
        path = self._path(theta, tasks.support)
        cotangents = {}
        for step, weight in schedule.items():
            gradient, loss, metric = self._query_gradient(path[step], tasks.query)
            cotangents[step] = {name: weight * of for name, of in gradient.items()}
        return pull_back(path, theta, cotangents), loss, metric

    def _path(self, theta: Parameters, support: Examples) -> list[Parameters]:
        """phi_0 ... phi_S, differentiably in theta."""
        return adaptation_path(self._support_loss, self.rule, theta, [support] * self.inner_steps)

    def _support_loss(self, phi: Parameters, support: Examples) -> Tensor:
        """The loss that inner steps descend, (M,)."""
        return self.criterion.loss(self.call(phi, support.inputs), support.targets)

    def _query_gradient(self, phi: Parameters, query: Examples) -> tuple[Parameters, Tensor, Tensor]:
        """Gradient of each task's query loss at phi, (M, ...), with loss and metric, (M,); nothing has a graph."""
        parts = []
        for task_slice in task_chunks(len(query.targets), tasks_per_chunk(query)):
            point = {name: value[task_slice].detach().requires_grad_() for name, value in phi.items()}
            examples = query.of_tasks(task_slice)
            loss, metric = self.criterion(self.call(point, examples.inputs), examples.targets)
            gradients = torch.autograd.grad(loss.sum(), list(point.values()), materialize_grads=True)
            parts.append((gradients, loss.detach(), metric))
        found, losses, metrics = zip(*parts, strict=True)
        joined = [torch.cat(of_chunks) for of_chunks in zip(*found, strict=True)]
        return dict(zip(phi, joined, strict=True)), torch.cat(losses), torch.cat(metrics)


@dataclass(frozen=True)
class FewShotReptile(MAML):
    """Reptile: theta moves towards the adapted parameters (Nichol et al. 2018), with theta - phi_S as its gradient.

    In training the inner loop sees support and query examples together, as there is no second loss. Deviation: every
    inner step sees all of them, and descends as the rule says, where the paper draws minibatches and uses Adam.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.multi_step_iterations, "multi_step_iterations", self.multi_step_iterations, "0 with Reptile")

    def gradient(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[int, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """Return theta - phi_S; loss and metric are those of the query examples after adaptation to all examples."""
        phi = self.states(theta, tasks.support.joined(tasks.query), self.inner_steps)[-1]
        with torch.no_grad():
            loss, metric = self.criterion(self.call(phi, tasks.query.inputs), tasks.query.targets)
            return reptile_gradient(theta, phi), loss, metric


@dataclass(frozen=True)
class Classifier(MAML):
    """Learns to tell all training classes apart; a baseline that meta-learns nothing.

    For a task its last layer is replaced by one of zeros with an output for each class of the task, and all that the
    rule adapts is fine-tuned on the support examples. Training takes no inner steps.

    Attributes:
        batch_size: images in a training batch.
        head: name of the last layer, within the module.
    """

    batch_size: int = 128
    head: str = "head"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("batch_size", self.batch_size)
        require(self.rule.inner_steps == 0, "inner_steps", self.rule.inner_steps, "0 with a classifier of all classes")
        layers = [name for name, _ in self.module.named_children()]
        require(self.head in layers, "head", self.head, f"a layer of the module: {', '.join(layers)}")

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return batches of images of all training classes."""
        return ImageBatches.of(task_distribution, self.batch_size)

    def adapt(self, theta: Parameters, support: Examples) -> Parameters:
        """Return the parameters with a new last layer, before any fine-tuning."""
        return super().adapt(self._with_new_head(theta, support), support)

    def states(self, theta: Parameters, support: Examples, inner_steps: int) -> list[Parameters]:
        """Return the parameters after 0 ... S steps of fine-tuning."""
        return super().states(self._with_new_head(theta, support), support, inner_steps)

    @torch.no_grad()
    def further_metrics(
        self, theta: Parameters, tasks: FewShotTasks, statistics: Parameters | None = None
    ) -> dict[str, Tensor]:
        """Return the accuracy of the nearest support image, in features, if the module has any."""
        if not hasattr(self.module, "features"):
            return {}
        support = call_features(self.module, theta, tasks.support.inputs)
        fixed = {**theta, **expand_over_tasks(statistics or {}, len(tasks))}
        query = call_features(self.module, fixed, tasks.query.inputs)
        found = nearest_neighbour(support, tasks.support.targets, query)
        return {"nearest_neighbour": (found == tasks.query.targets).double().mean(dim=1)}

    def _with_new_head(self, theta: Parameters, support: Examples) -> Parameters:
        if not support.targets.shape[1]:  # training batches have no support examples
            return theta
        ways = int(support.targets.max()) + 1
        head = {name: value for name, value in theta.items() if name.startswith(f"{self.head}.")}
        return {**theta, **{name: of.new_zeros(len(of), ways, *of.shape[2:]) for name, of in head.items()}}


def call_features(module: nn.Module, parameters: Parameters, inputs: Tensor) -> Tensor:
    """Apply a module without its last layer, by its method `features`; otherwise as `call_module`."""
    inside = {f"network.{name}": value for name, value in parameters.items()}
    return call_module(_Features(module), inside, inputs)


class _Features(nn.Module):
    """A network without its last layer."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network.features(inputs)  # type: ignore[operator]
