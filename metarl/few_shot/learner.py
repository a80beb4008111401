"""Supervised meta-learning: the inner loop of `metarl.core.adaptation` on labelled examples, any module, any rule.

    theta, tasks = meta-parameters, a meta-batch of M tasks
    path         = adaptation_path(theta, support)      phi_0 ... phi_S of every task
    loss         = criterion(model(phi_S, query))       differentiates through the path
    theta        = Adam(theta, mean gradient over tasks)

Tasks go through this in chunks that suit the cache, or all at once on a GPU; the numbers are the same, but for the
rounding of one or two tasks by themselves.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarl.core.adaptation import AdaptationRule, GradientDescent, adapt_step, adaptation_path
from metarl.core.distributed import Processes, current
from metarl.core.errors import NonFiniteError
from metarl.core.parallel import own_copy, parallel_map, task_chunks
from metarl.core.parameters import (
    Parameters,
    call_per_task,
    constants_of,
    expand_over_tasks,
    parameters_of,
    ravel,
    require_alike,
    restore_constants,
    unravel,
)
from metarl.core.randomness import keyed_generator
from metarl.core.recording import Recording, fingerprint
from metarl.core.validation import require_part, require_positive, require_seed, require_whole
from metarl.few_shot.networks import batch_statistics
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks

_CHUNK_VALUES = 63_000  # input numbers that a CPU's cache likes to see at a time: 80 Omniglot images


@dataclass(frozen=True)
class Criterion:
    """What is minimised, and what is reported. Both map outputs and targets (M, N, ...) to one number per task, (M,).

    Attributes:
        name: of the figure reported.
        loss: a mean over the N examples.
        score: the figure.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each task, (M,); ValueError where outputs would be broadcast to the targets."""
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs {tuple(outputs.shape)} for targets {tuple(targets.shape)}, which must be alike")
    return (outputs - targets).square().flatten(1).mean(dim=1)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (M, N, ways) and class numbers (M, N), for each task (M,).

    The paper's code divides the sum over a task by K alone, so its inner step sizes count N times as much as here.
    """
    losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(dim=1)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of examples whose largest logit is that of their class, (M,)."""
    return (outputs.argmax(dim=2) == targets).to(outputs.dtype).mean(dim=1)


REGRESSION = Criterion("mse", squared_error, squared_error)
CLASSIFICATION = Criterion("accuracy", cross_entropy, accuracy)


@dataclass(frozen=True)
class Model:
    """A module with the criterion that judges its outputs; the loss that the inner loop takes."""

    module: nn.Module
    criterion: Criterion

    def __call__(self, phi: Parameters, examples: Examples) -> Tensor:
        """Loss of each task, (M,)."""
        return self.criterion.loss(self.outputs(phi, examples.inputs), examples.targets)

    def outputs(self, phi: Parameters, inputs: Tensor) -> Tensor:
        """(M, N, ...) to (M, N, ...); a single task runs by itself, with kernels that know no batch of weights."""
        if len(inputs) > 1:
            return call_per_task(self.module, phi, inputs)
        own = {name: value[0] for name, value in phi.items()}
        return functional_call(own_copy(self.module), own, (inputs[0],)).unsqueeze(0)

    def judge(self, phi: Parameters, examples: Examples) -> tuple[Tensor, Tensor]:
        """Loss and score of each task, (M,) both; the score has no graph."""
        outputs = self.outputs(phi, examples.inputs)
        with torch.no_grad():
            score = self.criterion.score(outputs, examples.targets)
        return self.criterion.loss(outputs, examples.targets), score


def query_gradient(model: Model, phi: Parameters, query: Examples) -> tuple[Parameters, Tensor, Tensor]:
    """Gradient of each task's query loss at phi, with the losses and scores, (M,); nothing has a graph.

    The meta-gradient is this, pulled back through the inner loop. As it needs no second derivative, it can be taken
    for fewer tasks at a time than the inner loop, which has fewer examples.
    """
    parts = []
    for tasks in task_chunks(len(query.targets), _chunk(query)):
        point = {name: value[tasks].detach().requires_grad_() for name, value in phi.items()}
        loss, score = model.judge(point, query.of_tasks(tasks))
        gradients = torch.autograd.grad(loss.sum(), list(point.values()), materialize_grads=True)
        parts.append((gradients, loss.detach(), score))
    found, losses, scores = zip(*parts, strict=True)
    joined = [torch.cat(of_chunks) for of_chunks in zip(*found, strict=True)]
    return dict(zip(phi, joined, strict=True)), torch.cat(losses), torch.cat(scores)


def _chunk(examples: Examples) -> int:
    """How many tasks to handle at a time."""
    inputs = examples.inputs
    return len(inputs) if inputs.is_cuda else max(1, _CHUNK_VALUES // max(1, inputs[0].numel()))


def nearest_neighbour(support: Tensor, targets: Tensor, query: Tensor) -> Tensor:
    """The class of the support example whose features are nearest: (M, N, F), (M, N) and (M, Q, F) to (M, Q)."""
    return targets.gather(1, torch.cdist(query, support).argmin(dim=2))


class MetaGradient(Protocol):
    """How the meta-parameters learn from a chunk of tasks."""

    def weights(self, steps: int, iteration: int) -> dict[int, float]:
        """How much the query loss after an inner step counts, for those of the steps 0 ... S that count."""
        ...

    def __call__(
        self, model: Model, rule: AdaptationRule, theta: Parameters, tasks: FewShotTasks, weights: dict[int, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """Each task's gradient in theta, (M, ...) both, and its loss and score on query data after adaptation, (M,)."""
        ...


@dataclass(frozen=True)
class MAMLGradient:
    """The gradient of sum_s w_s L_query(phi_s) (Finn et al. 2017, where w_S = 1 and all others are 0).

    With `multi_step_iterations` it is MAML++'s multi-step loss (Antoniou et al. 2019): w starts equal over steps
    1 ... S and moves to the last one, linearly as in its code, until that iteration. Orders, and what is adapted, are
    the rule's business.

    Attributes:
        multi_step_iterations: iterations until only the last step counts; 0 for the paper's MAML.
    """

    multi_step_iterations: int = 0

    def weights(self, steps: int, iteration: int) -> dict[int, float]:
        """As in `MetaGradient`."""
        if steps < 2 or iteration >= self.multi_step_iterations:
            return {steps: 1.0}
        early = max(0.03, 1 - iteration / self.multi_step_iterations) / steps
        return dict.fromkeys(range(1, steps), early) | {steps: 1 - early * (steps - 1)}

    def __call__(
        self, model: Model, rule: AdaptationRule, theta: Parameters, tasks: FewShotTasks, weights: dict[int, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """As in `MetaGradient`."""
        path = adaptation_path(model, rule, theta, [tasks.support] * rule.steps)
        adapted: list[Tensor] = []
        cotangents: list[Tensor] = []
        for step, weight in weights.items():
            gradient, loss, score = query_gradient(model, path[step], tasks.query)
            adapted += path[step].values()
            cotangents += [weight * gradient[name] for name in path[step]]
        gradients = torch.autograd.grad(adapted, list(theta.values()), cotangents, materialize_grads=True)
        return dict(zip(theta, gradients, strict=True)), loss, score


@dataclass(frozen=True)
class ReptileGradient:
    """theta - phi_S as a gradient (Nichol et al. 2018), which a step size of 1 turns into a move to the mean phi_S.

    The inner loop sees support and query examples together, as there is no second loss; every step sees all of
    them, and descends as the rule says, where the paper draws minibatches and uses Adam.
    """

    def weights(self, steps: int, iteration: int) -> dict[int, float]:
        """The loss after the last step is what is reported; no gradient depends on it."""
        return {steps: 1.0}

    def __call__(
        self, model: Model, rule: AdaptationRule, theta: Parameters, tasks: FewShotTasks, weights: dict[int, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """As in `MetaGradient`; loss and score are those of the query data after adaptation to all of them."""
        both = Examples(
            torch.cat([tasks.support.inputs, tasks.query.inputs], dim=1),
            torch.cat([tasks.support.targets, tasks.query.targets], dim=1),
        )
        phi = rule.start(theta)
        for step in range(rule.steps):
            phi, _ = adapt_step(model, rule, theta, phi, both, step)
        with torch.no_grad():
            loss, score = model.judge(phi, tasks.query)
            gradients = {
                name: value - phi[name] if name in phi else torch.zeros_like(value) for name, value in theta.items()
            }
        return gradients, loss, score


@dataclass
class FewShotLearner:
    """A model, a distribution of tasks, and the meta-parameters that are being learned.

        learner = FewShotLearner(Sine(), MLP((1, 40, 40, 1)), REGRESSION, rule=GradientDescent(0.01))
        for _ in range(1000):
            figures = learner.step()

    Attributes:
        distribution: where tasks come from.
        module: any module that maps inputs (N, ...) to outputs (N, ...), as `torch.func.vmap` can do it: no dropout,
            and batch norm with the statistics of the batch at hand (`track_running_stats=False`).
        criterion: loss and score.
        tasks: M, tasks in a meta-batch.
        rule: the inner loop.
        meta_gradient: the outer one.
        learning_rate: of Adam.
        final_learning_rate: where a cosine takes it by the last of `iterations`; None keeps it.
        iterations: of the whole training, for the cosine.
        clip: bound on the absolute value of each element of the meta-gradient; None for none.
        seed: names all random tasks; the module's initial values are the caller's.
        device: where learning happens.
        task_chunk: tasks whose inner loops are differentiated together; None chooses.
        processes: that divide the tasks of a meta-batch; by default all that torch.distributed knows. On CPUs their
            number changes nothing, unless one has one or two tasks, which may be rounded otherwise.
        theta: meta-parameters.
        iteration: meta-iterations done.
    """

    distribution: FewShotDistribution
    module: nn.Module
    criterion: Criterion
    tasks: int = 25
    rule: AdaptationRule = field(default_factory=GradientDescent)
    meta_gradient: MetaGradient = field(default_factory=MAMLGradient)
    learning_rate: float = 0.001
    final_learning_rate: float | None = None
    iterations: int = 60_000
    clip: float | None = None
    seed: int = 0
    device: str = "cpu"
    task_chunk: int | None = None
    processes: Processes = field(default_factory=current)

    def __post_init__(self) -> None:
        require_whole("tasks", self.tasks)
        require_whole("iterations", self.iterations)
        require_positive("learning_rate", self.learning_rate)
        for name in ("final_learning_rate", "clip"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        require_seed(self.seed)
        require_part("rule", self.rule, "meta_parameters", "metarl.GradientDescent(0.01)")
        require_part("meta_gradient", self.meta_gradient, "weights", "metarl.MAMLGradient()")
        if self.task_chunk is not None:
            require_whole("task_chunk", self.task_chunk)
        if self.tasks < self.processes.size:
            raise ValueError(f"tasks = {self.tasks} on {self.processes.size} processes; allowed: one or more on each")
        self.module.to(self.device)
        self.model = Model(self.module, self.criterion)
        self.theta = self.rule.meta_parameters(parameters_of(self.module))
        self.iteration = 0
        for value in self.theta.values():
            value.requires_grad_()
        self._adam = torch.optim.Adam(self.theta.values(), self.learning_rate, fused=True)
        self._recordings: dict[tuple[int, ...], Recording] = {}
        self._recorded: tuple[Any, ...] = (None,) * 4
        self._fingerprint: tuple = ()

    def step(self) -> dict[str, float]:
        """Do one meta-iteration.

        Returns:
            figures of the iteration by name: query loss and score after adaptation, norm of the meta-gradient.
        """
        tasks = self.sample(self.tasks, "train", self.iteration).of_tasks(self.processes.share(self.tasks))
        gradients, losses, scores = self.gradient(tasks)
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        if not norm.isfinite():
            raise NonFiniteError(f"the meta-gradient is not finite in iteration {self.iteration}")
        for name, value in self.theta.items():
            value.grad = gradients[name] if self.clip is None else gradients[name].clamp(-self.clip, self.clip)
        self._adam.param_groups[0]["lr"] = self._learning_rate()
        self._adam.step()
        self.iteration += 1
        score, loss = (self.processes.sum(torch.stack([scores, losses]).double().sum(dim=1)) / self.tasks).tolist()
        return {
            "iteration": self.iteration,
            f"{self.criterion.name}/step_{self.rule.steps}": score,
            "loss": loss,
            "meta_gradient_norm": norm.item(),
        }

    def sample(self, tasks: int, split: str, iteration: int = 0) -> FewShotTasks:
        """The tasks of an iteration in training, or of a block of tasks in evaluation; on the learner's device."""
        rng = keyed_generator(self.seed, f"{split}/few_shot", iteration)
        return self.distribution.sample(tasks, split, rng).to(self.device)

    def gradient(self, tasks: FewShotTasks) -> tuple[Parameters, Tensor, Tensor]:
        """The meta-gradient, with loss and score of each task after adaptation, (M,).

        Args:
            tasks: of this process; the gradient is the mean over those of all processes.
        """
        weights = self.meta_gradient.weights(self.rule.steps, self.iteration)
        steps = tuple(weights)
        learns_by = (self.rule, self.meta_gradient, self.model.module, self.model.criterion)
        same = all(now is then for now, then in zip(learns_by, self._recorded, strict=True))
        held = fingerprint(self.model.module)
        if not same or held != self._fingerprint:
            self._recordings, self._recorded, self._fingerprint = {}, learns_by, held
        if steps not in self._recordings:
            self._check_module(tasks.query.of_tasks(slice(2)))
            self._recordings[steps] = Recording(partial(self._sums, steps))
        fixed = [*self.theta.values(), *torch.tensor(list(weights.values()), device=self.device)]

        def of_chunk(part: FewShotTasks) -> Sequence[Tensor]:
            return self._recordings[steps](*fixed, *part.tensors)

        gradients, losses, scores = zip(*parallel_map(of_chunk, self._chunks(tasks), self.device), strict=True)
        loss = torch.cat(losses)
        self._check_finite(loss)
        total = torch.stack(gradients).sum(dim=0)
        summed = self.processes.sum(torch.cat([total, total.new_full((1,), len(tasks))]))
        return unravel((summed[:-1] / summed[-1]).to(loss.dtype), self.theta), loss, torch.cat(scores)

    def adapt(self, support: Examples, steps: int) -> list[Parameters]:
        """Parameters phi_0 ... phi_S of every task, without a graph.

        Args:
            support: examples of M tasks.
            steps: S, inner steps; beyond the trained number the rule decides on their size.
        """
        theta = expand_over_tasks({name: value.detach() for name, value in self.theta.items()}, len(support.targets))
        path = [self.rule.start(theta)]
        for step in range(steps):
            path.append(adapt_step(self.model, self.rule, theta, path[-1], support, step)[0])
        return path

    def scores(self, tasks: FewShotTasks, steps: int, statistics: Sequence[Parameters] | None = None) -> Tensor:
        """Score of every task on query data after 0 ... S steps, (S + 1, M).

        Args:
            tasks: M tasks.
            steps: S.
            statistics: what batch norms use on query data after each step; None for the statistics of that data.
        """
        parts = []
        for part in self._chunks(tasks):
            path = self.adapt(part.support, steps)
            if statistics is not None:
                path = [
                    {**phi, **expand_over_tasks(fixed, len(part))} for phi, fixed in zip(path, statistics, strict=True)
                ]
            with torch.no_grad():
                parts.append(torch.stack([self.model.judge(phi, part.query)[1] for phi in path]))
        return torch.cat(parts, dim=1)

    def step_statistics(self, tasks: FewShotTasks, steps: int) -> list[Parameters]:
        """Batch norms' statistics on query data after 0 ... S steps, averaged over tasks, which are those of training.

        With them no query example depends on another. MAML++ proposes such statistics per step, as running averages
        of training; here they are those of the current theta. Support data keep their own, in training and test.
        """
        ones = [tasks.of_tasks(slice(i, i + 1)) for i in range(len(tasks))]
        paths = [self.adapt(one.support, steps) for one in ones]
        return [
            batch_statistics(
                self.module,
                [partial(self.predict, path[step], one.query.inputs) for path, one in zip(paths, ones, strict=True)],
            )
            for step in range(steps + 1)
        ]

    @torch.no_grad()
    def predict(self, phi: Parameters, inputs: Tensor) -> Tensor:
        """Outputs (M, N, ...) of adapted models on inputs (M, N, ...)."""
        return self.model.outputs(phi, inputs)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later iteration depends on, beside the settings."""
        theta = {name: value.detach().clone() for name, value in self.theta.items()}
        adam = copy.deepcopy(self._adam.state_dict()["state"])
        return {"theta": theta, "constants": constants_of(self.module), "iteration": self.iteration, "adam": adam}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; ValueError if its parameters or constants are not those of the module."""
        require_alike("parameters", state["theta"], self.theta)
        restore_constants(self.module, state.get("constants"))
        with torch.no_grad():
            for name, value in self.theta.items():
                value.copy_(state["theta"][name])
        self._adam.load_state_dict({**self._adam.state_dict(), "state": copy.deepcopy(state["adam"])})
        self.iteration = state["iteration"]

    def _sums(self, steps: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `gradient` joins, from tensors alone: theta, the weights of the losses after these steps, the tasks.

        Returns:
            sum of the tasks' gradients, as one vector in float64, and each task's loss and score, (M,).
        """
        values, weights, examples = tensors[: len(self.theta)], tensors[len(self.theta) : -4], tensors[-4:]
        tasks = FewShotTasks(Examples(*examples[:2]), Examples(*examples[2:]))
        detached = {name: value.detach() for name, value in zip(self.theta, values, strict=True)}
        theta = {name: rows.requires_grad_() for name, rows in expand_over_tasks(detached, len(tasks)).items()}
        weighed = dict(zip(steps, weights, strict=True))
        gradients, losses, scores = self.meta_gradient(self.model, self.rule, theta, tasks, weighed)
        return ravel([rows.sum(dim=0, dtype=torch.float64) for rows in gradients.values()]), losses, scores

    def _check_module(self, examples: Examples) -> None:
        """ValueError unless the module maps these inputs, of all tasks at once, to what the criterion can judge."""
        phi = self.rule.start(expand_over_tasks(self.theta, len(examples.targets)))
        try:
            with torch.no_grad():
                outputs = call_per_task(self.module, phi, examples.inputs)
                for judge in (self.criterion.loss, self.criterion.score):
                    if (found := judge(outputs, examples.targets)).shape != (len(outputs),):
                        raise ValueError(f"{judge.__name__} has shape {tuple(found.shape)}, not one number per task")
        except Exception as error:  # whatever a stranger's module and criterion do
            inputs, targets = (tuple(values.shape[1:]) for values in (examples.inputs, examples.targets))
            kind, reason = type(self.module).__name__, str(error).strip().split("\n")[0]
            raise ValueError(
                f"the module {kind} cannot learn a task of inputs {inputs} and targets {targets} ({reason}); allowed: "
                "what torch.func.vmap can do, without chance and running statistics, with outputs that the criterion "
                f"{self.criterion.name} takes"
            ) from error

    def _learning_rate(self) -> float:
        if self.final_learning_rate is None:
            return self.learning_rate
        share = min(1.0, self.iteration / self.iterations)
        above = (self.learning_rate - self.final_learning_rate) * (1 + math.cos(math.pi * share)) / 2
        return self.final_learning_rate + above

    def _chunks(self, tasks: FewShotTasks) -> list[FewShotTasks]:
        size = self.task_chunk or _chunk(tasks.support)
        return [tasks.of_tasks(part) for part in task_chunks(len(tasks), size)]

    def _check_finite(self, losses: Tensor) -> None:
        if not losses.isfinite().all():
            task = self.processes.share(self.tasks).start + int(losses.isfinite().logical_not().nonzero()[0])
            raise NonFiniteError(f"the query loss is not finite in iteration {self.iteration}: task {task}")
