"""Nearest class means: prototypical networks, and SimpleShot."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from metarl.core.parameters import Parameters
from metarl.core.settings import setting
from metarl.core.validation import require
from metarl.few_shot.method import State
from metarl.few_shot.methods.embedding import EmbeddingMethod, negative_squared_distances
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks, ImageBatches


@dataclass(frozen=True)
class Prototypical(EmbeddingMethod):
    """Prototypical networks (Snell et al. 2017).

        c_k = mean of z_i over the support images i of class k,    log P(k) = log softmax_k(-|z - c_k|^2)

    The distance is squared and has no scale, as in the paper; episodes of many classes (60) train better than episodes
    like those of the test.
    """

    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return the prototypes (M, ways, F)."""
        return {"prototypes": class_means(features.flatten(2), members)}

    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        return negative_squared_distances(features.flatten(2), state["prototypes"]).log_softmax(dim=2)


@dataclass(frozen=True)
class SimpleShot(EmbeddingMethod):
    """A classifier of all training classes, whose features are compared with class means (Wang et al. 2019).

        u = (z - m) / |z - m|,    c_k = mean of u_i over class k,    log P(k) = log softmax_k(-|u - c_k|^2)

    where m is the mean feature of training images. Deviation: m is a running average over training batches, where the
    paper takes the mean over the training set at its end. Without support images the classes are those of training.

    Attributes:
        head: the classifier's last layer, from features to a logit for each training class.
    """

    head: nn.Module = field(kw_only=True)
    batch_size: int = setting(128, "images in a training batch", at_least=1)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The embedding, and the classifier's last layer."""
        return {"": self.module, "head.": self.head}

    @property
    def averages(self) -> Parameters:
        """Statistics of batch norms, and the mean feature `centre` (F,)."""
        size: Any = getattr(self.head, "in_features", None)
        require(isinstance(size, int), "head", self.head, "a layer with in_features, such as torch.nn.Linear")
        return {**super().averages, "centre": next(self.head.parameters()).new_zeros(size).detach()}

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return batches of images of all training classes."""
        images: Any = getattr(task_distribution, "images", None)
        require(images is not None, "task_distribution", task_distribution, "one of images, such as ImageEpisodes")
        return ImageBatches(images, self.batch_size)

    def adapt(self, theta: Parameters, support: Examples) -> State:
        """Return the class means; an empty state where there are no support examples, as in training."""
        return super().adapt(theta, support) if support.targets.shape[1] else {}

    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return the class means of centred features of length one, (M, ways, F)."""
        return {"means": class_means(_directions(features, theta["centre"]), members)}

    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        if "means" not in state:
            return self.apply("head.", theta, (features.flatten(2),), {})[0].log_softmax(dim=2)
        return negative_squared_distances(_directions(features, theta["centre"]), state["means"]).log_softmax(dim=2)

    def training_pass(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Parameters]:
        """Return the classifier's loss and metric of each batch, (M,), and the statistics to be averaged."""
        features, seen = self.apply("", theta, (tasks.query.inputs,), {})
        loss, metric = self.criterion(self.compare(theta, {}, features), tasks.query.targets)
        return loss, metric, {**seen, "centre": features.flatten(2).mean(dim=1)}


def class_means(features: Tensor, members: Tensor) -> Tensor:
    """Return the mean over each class, (M, ways, ...).

    Args:
        features: (M, N, ...).
        members: one-hot classes (M, N, ways).
    """
    weights = members.to(features.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights.mT @ features.flatten(2)).unflatten(2, features.shape[2:])


def _directions(features: Tensor, centre: Tensor) -> Tensor:
    """Features (M, N, ...) less the centre, as vectors of length one (M, N, F)."""
    return F.normalize(features.flatten(2) - centre, dim=2)
