"""What a few-shot method is: an `adapt` and a `predict`, for M tasks at once.

    support, query = task_distribution.sample(M)
    state          = method.adapt(theta, support)                  what is learned from the support examples
    outputs        = method.predict(theta, state, query.inputs)
    theta          = outer(theta, criterion(outputs, query.targets))

Everything else, such as drawing tasks, the outer loop, evaluation and checkpoints, exists once for all methods. A
method may override how it is trained: the tasks (`training_tasks`), the loss (`loss`) or its gradient (`gradient`).

Shapes: theta holds tensors with a leading axis of M tasks, all rows equal, so that gradients are each task's own. So
do states: whatever a method makes of a task never depends on the tasks beside it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.core.parallel import own_copy
from metarl.core.parameters import Parameters, call_per_task, parameters_of
from metarl.few_shot.criteria import Criterion
from metarl.few_shot.predictive import Mixture, predictive_metrics, sample_variance
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks, tasks_per_chunk

State = dict[str, Any]  # of tensors (M, ...), or of such dicts


@dataclass(frozen=True)
class Method(ABC):
    """Base class of few-shot methods.

    A method of one's own is a frozen dataclass that derives from it and defines `adapt` and `predict`. It holds no
    state: what training changes is theta, and what a task changes is the state that `adapt` returns. What is drawn at
    random belongs to the tasks: `training_tasks` may return a distribution whose examples hold noise as well.

    Attributes:
        module: any module that maps inputs (N, ...) to outputs (N, ...), as `torch.func.vmap` can do it: no dropout,
            and batch norm with the statistics of the batch at hand (`track_running_stats=False`).
        criterion: loss and metric.
    """

    module: nn.Module
    criterion: Criterion

    @abstractmethod
    def adapt(self, theta: Parameters, support: Examples) -> State:
        """Return what is learned from the support examples of M tasks, differentiably in theta.

        Args:
            theta: meta-parameters (M, ...).
            support: inputs (M, N, ...) and targets.
        """

    @abstractmethod
    def predict(self, theta: Parameters, state: State, inputs: Tensor) -> Tensor:
        """Return the outputs (M, Q, ...) that the criterion takes, differentiably in theta and the state.

        Args:
            theta: meta-parameters (M, ...); they may also hold values for buffers of the module, such as fixed
                statistics of batch norms, which then take the place of the module's own.
            state: that `adapt` returned.
            inputs: (M, Q, ...).
        """

    def predictive(self, theta: Parameters, state: State, inputs: Tensor) -> Mixture:
        """Return the distribution of targets that the method predicts, of which `predict` is the mean.

        By default that is the output with the criterion's noise. Args: as of `predict`.
        """
        means = self.predict(theta, state, inputs).unsqueeze(1)
        return Mixture(means, sample_variance(means, self.noise_std))

    @property
    def noise_std(self) -> float:
        """The criterion's standard deviation of targets; ValueError if it has none."""
        std = self.criterion.noise_std
        if std is None:
            raise ValueError(f"the criterion {self.criterion.name} has noise_std = None; allowed: more than 0")
        return std

    def meta_parameters(self) -> Parameters:
        """Return theta before training, without an axis of tasks: the module's parameters, and what else is learned."""
        return parameters_of(self.module)

    @property
    def inner_steps(self) -> int:
        """Steps after which training judges an adapted model; 0 for methods without inner steps."""
        return 0

    @property
    def shares_theta(self) -> bool:
        """Whether no task has weights of its own, so that theta is one for all tasks.

        The gradient may then be summed over tasks already, the sum (1, ...) in place of the rows; the learner lets a
        single chunk have all threads, and records nothing.
        """
        return False

    @property
    def reads_in_order(self) -> bool:
        """Whether support examples are read one after the other, in an order that must be random."""
        return False

    @property
    def averages(self) -> Parameters:
        """Initial values of what in theta is a running average, by name; the outer loop does not learn it.

        The gradient of an average is the average less what it is of, and an iteration moves it by a tenth of that.
        """
        return {}

    def tasks_per_chunk(self, support: Examples) -> int:
        """Return how many tasks to handle at a time, which changes no numbers: on a CPU as many as suit its cache."""
        return tasks_per_chunk(support)

    def states(self, theta: Parameters, support: Examples, inner_steps: int) -> Sequence[State]:
        """Return the states after 0 ... S inner steps, without a graph; methods without inner steps have one."""
        with torch.no_grad():
            return [self.adapt(theta, support)]

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return where training tasks come from, given the distribution of the tasks to be learned.

        The learner asks the method that holds in an iteration, see `at`.
        """
        return task_distribution

    def evaluation_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return where the tasks of evaluations come from; another distribution only to add noise to its tasks."""
        return task_distribution

    def at(self, iteration: int) -> Self:
        """Return the method that holds after so many iterations; the same one where nothing is scheduled."""
        return self

    def begins_stage(self, iteration: int) -> bool:
        """Return whether another stage of training begins with an iteration, for which the outer loop starts anew."""
        return False

    def schedule(self, iteration: int) -> dict[Any, float]:
        """Return the numbers of the training loss that change gradually with the iteration, by name."""
        return {}

    def loss(self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[Any, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the training loss and the metric of each task, (M,) both.

        Args:
            theta: meta-parameters (M, ...).
            tasks: support and query examples of M tasks.
            schedule: the numbers of `schedule`, as tensors.
        """
        state = self.adapt(theta, tasks.support)
        outputs = self.predict(theta, state, tasks.query.inputs)
        return self.criterion(outputs, tasks.query.targets)

    def gradient(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[Any, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """Return each task's gradient of `loss` in theta, (M, ...), its loss and its metric, (M,); none has a graph.

        Args: as of `loss`; theta requires gradients.
        """
        loss, metric = self.loss(theta, tasks, schedule)
        gradients = torch.autograd.grad(loss.sum(), list(theta.values()), materialize_grads=True)
        return dict(zip(theta, gradients, strict=True)), loss.detach(), metric

    def further_metrics(
        self, theta: Parameters, tasks: FewShotTasks, statistics: Parameters | None = None
    ) -> dict[str, Tensor]:
        """Return further metrics of query examples, (M,), by name; evaluations report them too.

        By default these are the metrics of the predictive distribution, after as many inner steps as training takes,
        or one, where the criterion knows the noise of targets.

        Args:
            theta: meta-parameters (M, ...).
            tasks: M tasks.
            statistics: of batch norms on query examples, where fixed ones are asked for, without an axis of tasks.
        """
        if self.criterion.noise_std is None:
            return {}
        state = self.states(theta, tasks.support, max(1, self.inner_steps))[-1]
        with torch.no_grad():
            return predictive_metrics(self.predictive(theta, state, tasks.query.inputs), tasks.query.targets)

    def call(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """Apply the module to inputs (M, N, ...) with each task's own parameters, see `call_module`."""
        return call_module(self.module, parameters, inputs)


@dataclass(frozen=True)
class SharedMethod(Method):
    """Base class of methods by which no task gets weights of its own, so that theta is one for all tasks.

    In `adapt`, `predict` and `loss` the rows of theta are equal, and `first_rows` gives one of them.
    """

    @property
    def shares_theta(self) -> bool:
        """True: all tasks go through the network together."""
        return True

    def gradient(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[Any, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """Return the gradient summed over tasks, (1, ...), and each task's loss and metric, (M,)."""
        own = {name: value[:1].detach().requires_grad_() for name, value in theta.items()}
        return super().gradient(own, tasks, schedule)


def first_rows(theta: Parameters) -> Parameters:
    """Return theta without the axis of tasks, for methods by which all rows are equal."""
    return {name: value[0] for name, value in theta.items()}


def call_module(module: nn.Module, parameters: Parameters, inputs: Tensor) -> Tensor:
    """Apply a module to inputs (M, N, ...) with parameters (M, ...), of each task its own; return (M, N, ...).

    A single task runs without `torch.func.vmap`, with operations that know no batch of weights.
    """
    if len(inputs) > 1:
        return call_per_task(module, parameters, inputs)
    own = {name: value[0] for name, value in parameters.items()}
    return functional_call(own_copy(module), own, (inputs[0],)).unsqueeze(0)
