"""Nearest class means: prototypical networks, and SimpleShot."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from metarl.core.parameters import Parameters
from metarl.core.validation import require
from metarl.few_shot.method import State
from metarl.few_shot.methods.embedding import EmbeddingMethod, negative_squared_distances
from metarl.few_shot.methods.embedding_classifier import EmbeddingClassifier


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
class SimpleShot(EmbeddingClassifier):
    """A classifier of all training classes, whose features are compared with class means (Wang et al. 2019).

        u = (z - m) / |z - m|,    c_k = mean of u_i over class k,    log P(k) = log softmax_k(-|u - c_k|^2)

    where m is the mean feature of training images. Deviation: m is a running average over training batches, where the
    paper takes the mean over the training set at its end. Attributes as in `EmbeddingClassifier`.
    """

    @property
    def averages(self) -> Parameters:
        """Statistics of batch norms, and the mean feature `centre` (F,)."""
        size: Any = getattr(self.head, "in_features", None)
        require(isinstance(size, int), "head", self.head, "a layer with in_features, such as torch.nn.Linear")
        return {**super().averages, "centre": next(self.head.parameters()).new_zeros(size).detach()}

    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return the class means of centred features of length one, (M, ways, F)."""
        return {"means": class_means(_directions(features, theta["centre"]), members)}

    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        if "means" not in state:
            return self.classified(theta, features)
        return negative_squared_distances(_directions(features, theta["centre"]), state["means"]).log_softmax(dim=2)

    def averaged(self, features: Tensor) -> Parameters:
        """Return the mean feature of each batch, (M, F)."""
        return {"centre": features.flatten(2).mean(dim=1)}


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
