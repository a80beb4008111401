"""The few-shot learner: one data flow per meta-iteration, from tasks to new meta-parameters.

    support, query = task_distribution.sample(M)
    state          = method.adapt(theta, support)
    outputs        = method.predict(theta, state, query.inputs)
    theta          = outer(theta, criterion(outputs, query.targets))

`Method.loss` holds the lines in the middle. Tasks go through them in chunks that suit the cache, or all at once on a
GPU; the numbers are the same, except that one or two tasks by themselves may be rounded otherwise.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from metarl.core.ambient import in_standard_modes
from metarl.core.distributed import Processes, current
from metarl.core.errors import NonFiniteError
from metarl.core.parallel import parallel_map, task_chunks
from metarl.core.parameters import (
    Parameters,
    copied_to,
    expand_over_tasks,
    own_module,
    restore_constants,
    unravel,
)
from metarl.core.randomness import keyed_generator
from metarl.core.settings import check_settings, setting
from metarl.core.stateful import Stateful
from metarl.core.validation import require, require_whole
from metarl.few_shot.gradient_sums import GradientSums
from metarl.few_shot.learner_checks import (
    check_inputs,
    check_judged,
    check_method,
    check_parts,
    check_support,
    check_tasks,
    refuse_non_finite,
)
from metarl.few_shot.learner_state import FewShotState, check_state
from metarl.few_shot.method import Method, State
from metarl.few_shot.outer import OuterLoop
from metarl.few_shot.predictive import Mixture
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks

_AVERAGE_RATE = 0.1  # by which running averages move per iteration, as torch's batch norm has it


@dataclass(frozen=True, eq=False)
class FewShotLearner(Stateful):
    """Meta-learns with a few-shot method over a distribution of tasks.

        learner = FewShotLearner(Sine(), MAML(MLP((1, 40, 40, 1)), REGRESSION, GradientDescent(0.01)))
        for _ in range(1000):
            metrics = learner.step()

    The settings are fixed. The method is copied, with its module, criterion and rule, so that later changes of the
    caller's have no effect. What changes is `state`; `dataclasses.replace` makes a learner with other settings that
    continues from a copy of it, and refuses settings that the state does not fit. `theta`, `iteration` and `state_dict`
    are those of `metarl.core.stateful.Stateful`.

    Attributes:
        task_distribution: where tasks come from.
        method: module, criterion, and how they learn a task.
        outer: the outer loop.
        device: where learning happens.
        task_chunk: tasks whose inner loops are differentiated together; None chooses by the size of the cache.
        compiled: whether the meta-gradient is compiled, at the first iteration; one that cannot be warns and runs as it
            is. Numbers are the same within rounding. For methods whose tasks have parameters of their own.
        processes: that divide the tasks of a meta-batch; by default all that torch.distributed knows. On CPUs their
            number changes nothing, except that one or two tasks by themselves may be rounded otherwise.
        state: to continue from; None starts with the module's parameters.

    Raises:
        ValueError: in one line, what of the parts cannot be used.
    """

    task_distribution: FewShotDistribution
    method: Method
    num_tasks: int = setting(25, "tasks in a meta-batch, M", at_least=1)
    outer: OuterLoop = OuterLoop()
    seed: int = setting(0, "names all randomness of the run", at_least=0, at_most=2**64 - 1)
    device: str = "cpu"
    task_chunk: int | None = None
    compiled: bool = setting(
        False,
        "compile the meta-gradient with TorchInductor: a minute at the start, then faster; needs a C++ compiler, "
        "or Triton on a GPU",
    )
    processes: Processes = field(default_factory=current)
    state: FewShotState = field(default=None, repr=False)  # type: ignore[assignment]  # None becomes a new state

    _gradient_sums: GradientSums = field(init=False, repr=False, default_factory=GradientSums)

    @in_standard_modes
    def __post_init__(self) -> None:
        check_settings(self)
        check_parts(self)
        self._set(method=_own_method(self.method, self.device))
        theta = copied_to(self.method.meta_parameters(), self.device)
        given = self.state
        self._set(state=FewShotState(theta, self.outer.start(self._learned(theta))))
        check_method(self, self._draw(self._training_tasks, 2, "train", 0))
        if given is not None:
            self._continue_from(given)

    @in_standard_modes
    def step(self) -> dict[str, float]:
        """Do one meta-iteration.

        Returns:
            metrics of the iteration by name: query loss and metric after adaptation, norm of the meta-gradient.

        Raises:
            NonFiniteError: a loss or the meta-gradient is not finite; nothing has changed.
        """
        require(bool(self.state.adam), "the state of Adam", self.state.adam, "that of the iteration before")
        tasks = self._draw(self._training_tasks, self.num_tasks, "train", self.iteration)
        gradient, losses, metrics = self.meta_gradient(tasks.of_tasks(self.processes.shard(self.num_tasks)))
        learned = self._learned(gradient)
        norm = torch.stack([value.norm() for value in learned.values()]).norm()
        if not norm.isfinite():
            raise NonFiniteError(f"the meta-gradient is not finite in iteration {self.iteration}")
        adam = self._first_state().adam if self.method.begins_stage(self.iteration) else self.state.adam
        found, adam = self.outer.update(self._learned(self.theta), learned, adam, self.iteration)
        found |= {name: self.theta[name] - _AVERAGE_RATE * gradient[name] for name in self.method.averages}
        self._set(state=FewShotState({name: found[name] for name in self.theta}, adam, self.iteration + 1))
        sums = torch.stack([metrics, losses]).double().sum(dim=1)
        metric, loss = (self.processes.all_reduce_sum(sums) / self.num_tasks).tolist()
        return {
            "iteration": self.iteration,
            f"{self.method.criterion.name}/step_{self.method.inner_steps}": metric,
            "loss": loss,
            "meta_gradient_norm": norm.item(),
        }

    def sample(self, num_tasks: int, split: str, block: int = 0) -> FewShotTasks:
        """Return tasks of a split, on the learner's device: block number `block` of an endless sequence of them."""
        require_whole("num_tasks", num_tasks)
        return self._draw(self.method.evaluation_tasks(self.task_distribution), num_tasks, split, block)

    @in_standard_modes
    def meta_gradient(self, tasks: FewShotTasks) -> tuple[Parameters, Tensor, Tensor]:
        """Return the meta-gradient, and loss and metric of each task after adaptation, (M,). Collective.

        Args:
            tasks: training tasks of this process; the gradient is the mean over those of all processes.
        """
        method = self.method.at(self.iteration)
        schedule = method.schedule(self.iteration)
        theta = self.state.theta
        numbers = next(iter(theta.values())).new_tensor(list(schedule.values()))
        chunks = self._chunks(tasks)
        sums = self._gradient_sums.of(method, theta, tuple(schedule), chunks[0], self.compiled)

        def of_chunk(part: FewShotTasks) -> Sequence[Tensor]:
            return sums(*theta.values(), *numbers, *part.tensors)

        together = method.shares_theta and len(chunks) == 1  # operations are long enough for threads within them
        found = [of_chunk(chunks[0])] if together else parallel_map(of_chunk, chunks, self.device)
        gradients, losses, metrics = zip(*found, strict=True)
        loss = torch.cat(losses)
        if not loss.isfinite().all():
            task = self.processes.shard(self.num_tasks).start + int(loss.isfinite().logical_not().nonzero()[0])
            raise NonFiniteError(f"the query loss is not finite in iteration {self.iteration}: task {task}")
        total = torch.stack(gradients).sum(dim=0)
        summed = self.processes.all_reduce_sum(torch.cat([total, total.new_full((1,), len(tasks))]))
        return unravel((summed[:-1] / summed[-1]).to(loss.dtype), theta), loss, torch.cat(metrics)

    @in_standard_modes
    def adapt(self, support: Examples, inner_steps: int) -> list[State]:
        """Return what the method has learned of each task after 0 ... S inner steps, without a graph.

        Args:
            support: examples of M tasks.
            inner_steps: S; methods without inner steps return one state.
        """
        require_whole("inner_steps", inner_steps, at_least=0)
        check_support(support)
        method = self.method.at(self.iteration)
        return list(method.states(self._theta_of(len(support.targets)), support, inner_steps))

    @in_standard_modes
    @torch.no_grad()
    def predict(self, state: State, inputs: Tensor, statistics: Parameters | None = None) -> Tensor:
        """Return the outputs (M, Q, ...) of adapted models on inputs (M, Q, ...).

        Args:
            state: one of those that `adapt` returned.
            inputs: of the same M tasks.
            statistics: values of the module's buffers, such as statistics of batch norms; None for its own.

        Raises:
            ValueError: inputs that are no tensor, without an axis of tasks, or of images from 0 to 255.
        """
        check_inputs(state, inputs)
        theta = {**self._theta_of(len(inputs)), **expand_over_tasks(statistics or {}, len(inputs))}
        return self.method.at(self.iteration).predict(theta, state, inputs)

    @in_standard_modes
    @torch.no_grad()
    def predictive(self, state: State, inputs: Tensor) -> Mixture:
        """Return the predictive distribution of adapted models on inputs (M, Q, ...).

        Args: as of `predict`.
        """
        return self.method.at(self.iteration).predictive(self._theta_of(len(inputs)), state, inputs)

    @in_standard_modes
    def metric(
        self, tasks: FewShotTasks, inner_steps: int, statistics: Sequence[Parameters] | None = None, first_task: int = 0
    ) -> Tensor:
        """Return the metric of every task on query examples after 0 ... S inner steps, (S + 1, M).

        Args:
            tasks: M tasks.
            inner_steps: S.
            statistics: of batch norms on query examples after each step; None for those of the batch at hand.
            first_task: number of the first of these tasks, for errors.

        Raises:
            ValueError: tasks that cannot be judged, such as with query examples of classes that have no support.
            NonFiniteError: outputs are not finite, and the metric does not show it, or no more steps were taken than in
                training. After more steps a task may diverge; its metric is then not finite.
        """
        check_judged(tasks)
        parts: list[Tensor] = []
        for part in self._chunks(tasks):
            found = []
            for step, state in enumerate(self.adapt(part.support, inner_steps)):
                outputs = self.predict(state, part.query.inputs, None if statistics is None else statistics[step])
                metric = self.method.criterion.metric(outputs, part.query.targets)
                diverges = step > max(1, self.method.inner_steps)
                refuse_non_finite(outputs, metric, step, first_task + sum(of.shape[1] for of in parts), diverges)
                found.append(metric)
            parts.append(torch.stack(found))
        return torch.cat(parts, dim=1)

    @in_standard_modes
    def further_metrics(
        self, tasks: FewShotTasks, statistics: Parameters | None = None, first_task: int = 0
    ) -> dict[str, Tensor]:
        """Return the metrics of the method's own of every task, (M,), by name.

        Args:
            tasks: M tasks.
            statistics: of batch norms on query examples before any step; None for those of the batch at hand.
            first_task: number of the first of these tasks, for errors.

        Raises:
            NonFiniteError: a metric is not finite.
        """
        found = self.method.at(self.iteration).further_metrics(self._theta_of(len(tasks)), tasks, statistics)
        for name, values in found.items():
            if not (finite := values.isfinite()).all():
                task = first_task + int(finite.logical_not().nonzero()[0])
                raise NonFiniteError(f"the metric {name} of task {task} is not finite")
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; ValueError, and nothing changed, if names or shapes in it are others than our own.

        A state without `adam`, as kept results have it, can be evaluated but not trained on.
        """
        given = FewShotState(state["theta"], state.get("adam") or {}, state["iteration"])
        check_state(given, self._first_state())
        restore_constants(self.method.module, state.get("constants"))
        self._continue_from(given)

    def close(self) -> None:
        """Do nothing: unlike a learner with environments, this one holds nothing open."""

    def _draw(self, distribution: FewShotDistribution, num_tasks: int, split: str, block: int) -> FewShotTasks:
        tasks = distribution.sample(num_tasks, split, keyed_generator(self.seed, f"{split}/few_shot", block))
        check_tasks(tasks, num_tasks)
        return tasks.to(self.device)

    @property
    def _training_tasks(self) -> FewShotDistribution:
        """Where the training tasks of the iteration come from."""
        return self.method.at(self.iteration).training_tasks(self.task_distribution)

    def _theta_of(self, num_tasks: int) -> Parameters:
        """Theta with an axis of M tasks."""
        return expand_over_tasks(self.state.theta, num_tasks)

    def _chunks(self, tasks: FewShotTasks) -> list[FewShotTasks]:
        size = self.task_chunk or self.method.tasks_per_chunk(tasks.support)
        return [tasks.of_tasks(task_slice) for task_slice in task_chunks(len(tasks), size)]

    def _learned(self, parameters: Parameters) -> Parameters:
        """Those that the outer loop learns, so without running averages."""
        return {name: value for name, value in parameters.items() if name not in self.method.averages}

    def _first_state(self) -> FewShotState:
        return FewShotState(self.theta, self.outer.start(self._learned(self.theta)))

    def _continue_from(self, state: FewShotState) -> None:
        """Take over a copy of a state; ValueError unless its names and shapes are the learner's own."""
        check_state(state, self._first_state())
        theta, adam = (copied_to(part, self.device) for part in (state.theta, state.adam))
        self._set(state=FewShotState(theta, adam, int(state.iteration)))

    @property
    def _module(self) -> nn.Module:
        return self.method.module


def _own_method(method: Method, device: str) -> Method:
    """A copy of a method that nobody else changes, with its modules on a device."""
    modules = [part for part in vars(method).values() if isinstance(part, nn.Module)]
    return copy.deepcopy(method, {id(module): own_module(module, device) for module in modules})
