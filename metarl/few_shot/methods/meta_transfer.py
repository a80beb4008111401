"""Meta-transfer learning (Sun et al. 2019): a pretrained network, of which scales and shifts alone are meta-learned.

    stage 1   a classifier of all training classes learns the network: weights W, and shifts beta of its batch norms
    stage 2   W and beta are frozen; episodes teach a scale s of every kernel, a shift t of every filter, and the start
              of a task's last layer:    weight W s,    shift beta + t,    s = 1 + r a,    t = r b,    first a = b = 0

The factor r is the learning rate of s and t relative to that of the last layer's start: Adam moves a and b by its
learning rate, whatever the size of their gradients.

A task changes its last layer alone, by gradient descent on the features of its support images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from metarl.core.parameters import Parameters
from metarl.core.settings import setting
from metarl.core.validation import require
from metarl.few_shot.method import Method, State
from metarl.few_shot.methods.embedding import EmbeddingMethod
from metarl.few_shot.methods.embedding_classifier import EmbeddingClassifier
from metarl.few_shot.normalisation import batch_norms
from metarl.few_shot.tasks import FewShotDistribution, FewShotTasks

_SCALE, _SHIFT, _TASK_HEAD = "meta_scale.", "meta_shift.", "task_head."
_META_LEARNED = (_SCALE, _SHIFT, _TASK_HEAD)


@dataclass(frozen=True)
class MetaTransfer(EmbeddingClassifier):
    """A frozen classifier with learned scales and shifts, and a last layer that a task fine-tunes (Sun et al. 2019).

        weight' = weight - alpha dL/dweight,    bias' = bias - alpha dL/dbias,    L the mean cross-entropy of a task's
        support images, from a learned start; the meta-gradient runs through all steps

    A scale belongs to a kernel, of one filter and one channel of the input, as in the authors' code. Running averages
    of batch norms are frozen with the network, so that the first step of stage 2 begins with what stage 1 has learned.
    `at` returns the method of a stage: that of stage 2 has no pretraining iterations left.

    Deviations: the paper's meta-batches of hard tasks are left out; batch norms' own scales are frozen, too, and their
    statistics do not follow the scales.

    Attributes:
        module: the embedding, with convolutions whose weights are (filters, channels, height, width).
        head: the last layer in stage 1, from features to a logit for each training class.
        task_head: a linear layer, from features to a logit for each class of a task: where a task starts.
    """

    task_head: nn.Linear = field(kw_only=True)
    pretraining_iterations: int = setting(
        2_500, "iterations of stage 1, in which a classifier learns from batches, before episodes", at_least=0
    )
    scaled: bool = setting(
        True, "learn scales and shifts; without them, the start of a task's last layer alone, on frozen features"
    )
    scale_rate: float = setting(
        0.1,
        "learning rate of scales and shifts, relative to that of the start of a task's last layer, r",
        more_than=0,
        source="authors' code",
    )
    head_steps: int = setting(50, "gradient steps of a task's last layer", at_least=0, source="authors' code")
    head_step_size: float = setting(0.01, "size of these steps", more_than=0, source="authors' code")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.scaled or bool(self._kernels()), "module", self.module, "one with convolutions")

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The embedding, and the last layers of a classifier and of tasks."""
        return {**super().parts, _TASK_HEAD: self.task_head}

    def meta_parameters(self) -> Parameters:
        """Return the parameters of all parts, the running averages, and a (filters, channels) and b of all layers."""
        found = super().meta_parameters()
        if self.scaled:
            shifts = [f"{name}.shift" for name in batch_norms(self.module)]
            found |= {_SCALE + name: torch.zeros_like(found[name][:, :, 0, 0]) for name in self._kernels()}
            found |= {_SHIFT + name: torch.zeros_like(found[name]) for name in shifts}
        return found

    def at(self, iteration: int) -> Self:
        """Return the method of the stage that an iteration belongs to."""
        first = iteration < self.pretraining_iterations or not self.pretraining_iterations
        return self if first else replace(self, pretraining_iterations=0)

    def begins_stage(self, iteration: int) -> bool:
        """Return whether stage 2 begins with this iteration, after a stage 1."""
        return 0 < self.pretraining_iterations == iteration

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return batches of images of all training classes in stage 1, and then episodes."""
        batches = super().training_tasks(task_distribution)
        return batches if self.pretraining_iterations else EmbeddingMethod.training_tasks(self, task_distribution)

    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return the last layers of the tasks after all steps: `weight` (M, ways, F) and `bias` (M, ways)."""
        z, targets = features.flatten(2), members.to(features.dtype)
        tasks, count, ways = targets.shape
        start = [theta[f"{_TASK_HEAD}{name}"] for name in ("weight", "bias")]
        require(ways <= len(start[0]), "ways", ways, f"at most {len(start[0])}, as many as task_head has outputs")
        weight, bias = (value[:ways].expand(tasks, *value[:ways].shape) for value in start)
        for _ in range(self.head_steps):
            error = (_logits(weight, bias, z).softmax(dim=2) - targets) / count  # dL/dlogits (M, N, ways)
            weight = weight - self.head_step_size * error.mT @ z
            bias = bias - self.head_step_size * error.sum(dim=1)
        return {"weight": weight, "bias": bias}

    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        if "weight" not in state:
            return self.classified(theta, features)
        return _logits(state["weight"], state["bias"], features.flatten(2)).log_softmax(dim=2)

    def apply(
        self, prefix: str, theta: Parameters, inputs: tuple[Tensor, ...], statistics: Parameters
    ) -> tuple[Tensor, Parameters]:
        """As of any method that embeds, in stage 2 with scales and shifts, which stage 1 leaves as they are."""
        if not prefix and not self.pretraining_iterations:
            theta = with_scales_and_shifts(theta, self.scale_rate)
        return super().apply(prefix, theta, inputs, statistics)

    def loss(self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the classifier's loss and metric in stage 1, and in stage 2 those of query images; (M,) both."""
        return (EmbeddingMethod if self.pretraining_iterations else Method).loss(self, theta, tasks, schedule)

    def gradient(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]
    ) -> tuple[Parameters, Tensor, Tensor]:
        """Return the gradient summed over tasks, (1, ...), which is 0 for what is frozen; and loss and metric, (M,)."""
        if self.pretraining_iterations:
            return super().gradient(theta, tasks, schedule)
        own = {name: value[:1].detach() for name, value in theta.items()}
        learned = [own[name].requires_grad_() for name in own if name.startswith(_META_LEARNED)]
        loss, metric = self.loss(own, tasks, schedule)
        gradients = iter(torch.autograd.grad(loss.sum(), learned, materialize_grads=True))
        found = {n: next(gradients) if value.requires_grad else torch.zeros_like(value) for n, value in own.items()}
        return found, loss.detach(), metric

    def _kernels(self) -> list[str]:
        """Names of the weights of convolutions."""
        return [name for name, value in self.module.named_parameters() if value.ndim == 4]


def with_scales_and_shifts(theta: Parameters, rate: float) -> Parameters:
    """Return a `MetaTransfer` method's theta, without an axis of tasks, with scaled weights and shifted shifts.

    Args:
        theta: also has a and b of the scales 1 + r a and of the shifts r b.
        rate: r.
    """
    found = dict(theta)
    for key, value in theta.items():
        if key.startswith(_SCALE):
            name = key.removeprefix(_SCALE)
            found[name] = theta[name] * (1 + rate * value[:, :, None, None])
        elif key.startswith(_SHIFT):
            name = key.removeprefix(_SHIFT)
            found[name] = theta[name] + rate * value
    return found


def _logits(weight: Tensor, bias: Tensor, features: Tensor) -> Tensor:
    """Outputs (M, N, ways) of last layers (M, ways, F) and (M, ways) on features (M, N, F)."""
    return torch.baddbmm(bias.unsqueeze(1), features, weight.mT)
