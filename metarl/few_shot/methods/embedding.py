"""Methods that embed images with one network for all tasks, and learn a task from the embeddings in closed form.

    state   = learn(theta, embed(support inputs), support targets)
    outputs = compare(theta, state, embed(query inputs))              log-probabilities of the task's classes

A task changes no weights, so theta is one for all tasks: the images of all tasks go through the network together, and
the gradient is summed over tasks as it is computed. Tasks may have any number of classes and of support images, also
other than in training.

What batch norms use is `batch_norm`:

    running    as published: in training the statistics of each task's images, support and query together; afterwards
               running averages of them, which are part of theta and move by a tenth per iteration
    support    those of the task's support images, for its query images too, in training and afterwards
    batch      those of the batch at hand, support and query images apart. Then a query image's class depends on the
               other query images: such results are transductive
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metarl.core.parallel import own_copy
from metarl.core.parameters import Parameters, parameters_of
from metarl.core.settings import check_settings, setting
from metarl.core.validation import require
from metarl.few_shot.method import Method, State
from metarl.few_shot.normalisation import batch_norms, observed
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks, training_episodes

BATCH_NORM = ("running", "support", "batch")


@dataclass(frozen=True)
class EmbeddingMethod(Method):
    """Base class of methods that embed; one of them defines `learn` and `compare`, functions of embeddings.

    In both, theta has no axis of tasks. Further modules that are learned are fields of the method, see `parts`.

    Attributes:
        module: the embedding, from images (N, H, W, C) to vectors or maps (N, ...). Batch norms in it are those of
            `metarl.few_shot.normalisation`, unless `batch_norm` is `batch`.
        criterion: takes log-probabilities (M, Q, ways) and class numbers (M, Q).
    """

    batch_norm: str = setting(
        "running",
        "statistics of batch norms; with those of the batch at hand, results are transductive",
        choices=BATCH_NORM,
    )
    training_ways: int | None = setting(None, "classes of a training task; none for those of a test task", at_least=2)

    def __post_init__(self) -> None:
        check_settings(self)
        owners: dict[str, str] = {}  # of each name in theta, the prefix of its part
        for prefix, part in self.parts.items():
            for name, _ in [*part.named_parameters(), *part.named_buffers()]:
                taken = owners.setdefault(prefix + name, prefix) != prefix
                require(not taken, "module", prefix + name, f"another name, as {prefix[:-1]} is a part of the method")
        for part in self.parts.values():
            for name, layer in part.named_modules() if self.batch_norm != "batch" else ():
                foreign = isinstance(layer, nn.modules.batchnorm._NormBase)
                require(not foreign, "batch_norm", self.batch_norm, f"batch, as layer {name} is torch's own batch norm")

    @abstractmethod
    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return what is learned of M tasks from embeddings (M, N, ...) and the class of each, one-hot (M, N, ways)."""

    @abstractmethod
    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways) of embeddings (M, Q, ...)."""

    def judge(
        self, theta: Parameters, state: State, features: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Parameters]:
        """Return what training minimises, its metric, (M,) both, and statistics (M, ...) to be averaged, by name.

        Args:
            theta: meta-parameters, without running averages.
            state: that was learned from the support examples.
            features: embeddings of the query examples (M, Q, ...).
            targets: their class numbers (M, Q).
        """
        return *self.criterion(self.compare(theta, state, features), targets), {}

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The modules that are learned, by the prefix of their parameters' names in theta."""
        return {"": self.module}

    @property
    def averages(self) -> Parameters:
        """Initial values of the running averages in theta, by name: statistics of batch norms."""
        if self.batch_norm != "running":
            return {}
        found = {}
        for prefix, part in self.parts.items():
            for name, norm in batch_norms(part).items():
                found[f"{prefix}{name}.mean"] = torch.zeros_like(norm.shift.detach())
                found[f"{prefix}{name}.variance"] = torch.ones_like(norm.shift.detach())
        return found

    @property
    def shares_theta(self) -> bool:
        """True: all tasks go through the network together."""
        return True

    def meta_parameters(self) -> Parameters:
        """Return the parameters of all parts, and the running averages."""
        found = {f"{prefix}{n}": v for prefix, part in self.parts.items() for n, v in parameters_of(part).items()}
        return {**found, **self.averages}

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return episodes with as many classes as training wants."""
        return training_episodes(task_distribution, self.training_ways)

    def adapt(self, theta: Parameters, support: Examples) -> State:
        """Return what is learned from the support examples; ValueError for a class without any."""
        own = {name: value[0] for name, value in theta.items()}
        features, seen = self.apply("", own, (support.inputs,), self.statistics(own, {}))
        return self._learned(own, features, support.targets, seen)

    def predict(self, theta: Parameters, state: State, inputs: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        own = {name: value[0] for name, value in theta.items()}
        features, _ = self.apply("", own, (inputs,), self.statistics(own, state))
        return self.compare(own, state, features)

    def loss(self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the training loss and the metric of each task, (M,) both."""
        own = {name: value[0] for name, value in theta.items() if name not in self.averages}
        return self.training_pass(own, tasks, schedule)[:2]

    def gradient(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """Return the gradient summed over tasks, (1, ...), and each task's loss and metric, (M,).

        For a running average it is the sum of (average - statistic of a task), by which the learner moves it.
        """
        averages, count = self.averages, len(tasks)
        own = {n: value[0].detach().requires_grad_() for n, value in theta.items() if n not in averages}
        loss, metric, seen = self.training_pass(own, tasks, schedule)
        gradients = torch.autograd.grad(loss.sum(), list(own.values()), materialize_grads=True)
        found = dict(zip(own, gradients, strict=True))
        found |= {name: count * theta[name][0].detach() - seen[name].detach().sum(dim=0) for name in averages}
        return {name: found[name].unsqueeze(0) for name in theta}, loss.detach(), metric

    def statistics(self, theta: Parameters, state: State) -> Parameters:
        """Return the statistics that batch norms use instead of the batch's, by name in theta: (F,), or (M, F)."""
        if self.batch_norm == "support":
            return state.get("statistics", {})
        return {name: theta[name] for name in self.averages if name in theta}

    def apply(
        self, prefix: str, theta: Parameters, inputs: tuple[Tensor, ...], statistics: Parameters
    ) -> tuple[Tensor, Parameters]:
        """Apply a part to inputs (M, N, ...) of M tasks, in one pass; batch norms see each task by itself.

        Returns:
            outputs (M, N, ...), and where none are given, the statistics (M, F) that batch norms saw, by name in theta.
        """
        module = own_copy(self.parts[prefix])
        names = [name for name, _ in module.named_parameters()]
        parameters = {name: theta[prefix + name] for name in names if prefix + name in theta}
        buffers = [f"{name}.{which}" for name in batch_norms(module) for which in ("mean", "variance")]
        fixed = {name: statistics[prefix + name] for name in buffers if prefix + name in statistics}

        def call(fixed: Parameters, *inputs: Tensor) -> tuple[Tensor, Parameters]:
            with observed(module) as seen:
                outputs = functional_call(module, {**parameters, **fixed}, inputs)
            found = {}
            for name, [moments] in seen.items() if not fixed else ():
                found[f"{prefix}{name}.mean"], found[f"{prefix}{name}.variance"] = moments.mean, moments.variance
            return outputs, found

        if len(inputs[0]) > 1:
            return vmap(call, in_dims=(0 if self.batch_norm == "support" else None, *[0] * len(inputs)))(fixed, *inputs)
        own = {name: value[0] for name, value in fixed.items()} if self.batch_norm == "support" else fixed
        outputs, found = call(own, *(part[0] for part in inputs))
        return outputs.unsqueeze(0), {name: value.unsqueeze(0) for name, value in found.items()}

    def apply_to_all(self, prefix: str, theta: Parameters, inputs: tuple[Tensor, ...]) -> Tensor:
        """Apply a part that takes the axis of M tasks itself, as recurrent networks do."""
        module = own_copy(self.parts[prefix])
        parameters = {name: theta[prefix + name] for name, _ in module.named_parameters() if prefix + name in theta}
        return functional_call(module, parameters, inputs)

    def training_pass(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Parameters]:
        """Loss and metric of each task, (M,), and the statistics to be averaged; theta without running averages."""
        support, query = tasks.support, tasks.query
        shots = support.targets.shape[1]
        if self.batch_norm == "running":
            features, seen = self.apply("", theta, (torch.cat([support.inputs, query.inputs], dim=1),), {})
            state = self._learned(theta, features[:, :shots], support.targets, {})
            of_query = features[:, shots:]
        else:
            features, seen = self.apply("", theta, (support.inputs,), {})
            state = self._learned(theta, features, support.targets, seen)
            of_query, _ = self.apply("", theta, (query.inputs,), self.statistics(theta, state))
        loss, metric, more = self.judge(theta, state, of_query, query.targets)
        return loss, metric, {**seen, **more}

    def _learned(self, theta: Parameters, features: Tensor, targets: Tensor, seen: Parameters) -> State:
        state = self.learn(theta, features, one_hot(targets))
        if self.batch_norm == "support":
            state["statistics"] = {**seen, **state.get("statistics", {})}
        return state


def one_hot(targets: Tensor) -> Tensor:
    """Return which class each example is of: (M, N) class numbers to (M, N, ways) of False and True.

    Raises:
        ValueError: targets that are no class numbers, or a class without an example, as all tasks have equally many.
    """
    if targets.is_floating_point() or not targets.shape[1]:
        raise ValueError(
            f"support targets {tuple(targets.shape)} of {targets.dtype}; allowed: class numbers, one or more"
        )
    members = targets.unsqueeze(-1) == torch.arange(int(targets.max()) + 1, device=targets.device)
    if not (present := members.any(dim=1)).all():
        task, number = present.logical_not().nonzero()[0].tolist()
        raise ValueError(f"task {task} has no support example of class {number}; allowed: one or more of every class")
    return members


def negative_squared_distances(features: Tensor, others: Tensor) -> Tensor:
    """Return -|z - c|^2 + |z|^2 of each z in features (M, Q, F) and c in others (M, N, F), (M, Q, N).

    |z|^2 is left out, as it is the same for all classes.
    """
    return 2 * features @ others.mT - others.square().sum(dim=2).unsqueeze(1)


def class_logsumexp(scores: Tensor, members: Tensor) -> Tensor:
    """Return log sum_i exp(score_i) over the support examples i of each class: (M, Q, N) to (M, Q, ways).

    Args:
        scores: of each query and support example.
        members: one-hot classes of the support examples (M, N, ways).
    """
    index = members.int().argmax(dim=2).unsqueeze(1).expand_as(scores)
    lowest = scores.new_full((*scores.shape[:2], members.shape[2]), -torch.inf)
    top = lowest.scatter_reduce(2, index, scores.detach(), "amax")
    return torch.log((scores - top.gather(2, index)).exp() @ members.to(scores.dtype)) + top
