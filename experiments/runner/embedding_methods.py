"""Few-shot methods that embed images, as variants of `--method`: their settings, and what they build."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from metarl.core.settings import check_settings, setting
from metarl.experiments.runner.settings import same_as
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.embedding_networks import EmbeddingNet
from metarl.few_shot.method import Method
from metarl.few_shot.methods.centroids import Prototypical, SimpleShot
from metarl.few_shot.methods.embedding import EmbeddingMethod
from metarl.few_shot.methods.matching import ContextEmbeddings, FullContextMatching, Matching
from metarl.few_shot.methods.meta_transfer import MetaTransfer
from metarl.few_shot.methods.relation import Relation, RelationNet
from metarl.few_shot.methods.ridge import RidgeRegression
from metarl.few_shot.methods.siamese import Siamese
from metarl.few_shot.tasks import ImageEpisodes


@dataclass(frozen=True)
class Embedded:
    """What methods have in common that learn a task without inner steps, from what a network makes of its images."""

    inner_steps: ClassVar[int] = 0
    maps: ClassVar[bool] = False  # whether images are embedded as maps
    shuffled: ClassVar[bool] = False  # whether support images are in random order
    fixed_ways: ClassVar[bool] = False  # whether tasks have no more classes than those of training
    batched: ClassVar[bool] = False  # whether an iteration learns from several tasks
    episodic: ClassVar[bool] = False  # whether training has query images, although it is not batched
    pretraining_iterations: ClassVar[int] = 0
    batch_norm: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def without_effect(self) -> Mapping[str, str]:
        """Flat names of own settings that have none, with that of the setting by which they have none."""
        return {}

    def build(self, module: nn.Module, training: ImageEpisodes) -> Method:
        """Return the method with its module, and whatever else it learns."""
        raise NotImplementedError


@dataclass(frozen=True)
class Convolved(Embedded):
    """A method whose embedding is Conv-4, or another module with batch norm."""

    batch_norm: str = same_as(EmbeddingMethod, "batch_norm")  # type: ignore[misc]
    strided: bool = setting(False, "convolutions with stride in place of max pooling: a quarter of the work")


@dataclass(frozen=True)
class Episodic(Convolved):
    """A method that is trained with episodes, one per iteration."""

    episodic: ClassVar[bool] = True

    training_ways: int | None = same_as(EmbeddingMethod, "training_ways")

    @property
    def common(self) -> dict[str, Any]:
        """What `EmbeddingMethod` takes."""
        return {"criterion": CLASSIFICATION, "batch_norm": self.batch_norm, "training_ways": self.training_ways}


@dataclass(frozen=True)
class Prototypes(Episodic):
    """Prototypical networks, trained on episodes of 60 classes."""

    training_ways: int | None = same_as(EmbeddingMethod, "training_ways", default=60, source="paper")

    def build(self, module: nn.Module, training: ImageEpisodes) -> EmbeddingMethod:
        """As of any of them."""
        return Prototypical(module, **self.common)


@dataclass(frozen=True)
class Attention(Episodic):
    """Matching networks."""

    distance: str = same_as(Matching, "distance")
    scale: float = same_as(Matching, "scale", flag="attention_scale")

    def build(self, module: nn.Module, training: ImageEpisodes) -> EmbeddingMethod:
        """As of any of them."""
        return Matching(module, **self.common, distance=self.distance, scale=self.scale)


@dataclass(frozen=True)
class ContextAttention(Attention):
    """Matching networks with full context embeddings."""

    distance: str = same_as(Matching, "distance", default="cosine")
    scale: float = same_as(Matching, "scale", default=10.0, flag="attention_scale")
    reads: int = setting(5, "how often a query image attends to the support images", at_least=1)

    def build(self, module: nn.Module, training: ImageEpisodes) -> EmbeddingMethod:
        """As of any of them."""
        context = ContextEmbeddings(math.prod(embedded_shape(module, training)), self.reads)
        chosen: dict[str, Any] = {"distance": self.distance, "scale": self.scale}
        return FullContextMatching(module, **self.common, **chosen, context=context)


@dataclass(frozen=True)
class Relations(Episodic):
    """Relation networks."""

    maps: ClassVar[bool] = True

    def build(self, module: nn.Module, training: ImageEpisodes) -> EmbeddingMethod:
        """As of any of them."""
        height, width, channels = embedded_shape(module, training)
        return Relation(module, **self.common, relation=RelationNet((height, width, channels), channels))


@dataclass(frozen=True)
class Pairs(Convolved):
    """Siamese networks, trained on all pairs of a batch of images."""

    pairs: int = same_as(Siamese, "pairs")

    def build(self, module: nn.Module, training: ImageEpisodes) -> EmbeddingMethod:
        """As of any of them."""
        comparison = nn.Linear(math.prod(embedded_shape(module, training)), 1)
        return Siamese(module, CLASSIFICATION, self.batch_norm, pairs=self.pairs, comparison=comparison)


@dataclass(frozen=True)
class Ridge(Prototypes):
    """R2-D2, trained on episodes of 60 classes."""

    ridge: float = same_as(RidgeRegression, "ridge")
    scale: float = same_as(RidgeRegression, "scale", flag="output_scale")

    def build(self, module: nn.Module, training: ImageEpisodes) -> EmbeddingMethod:
        """As of any of them."""
        return RidgeRegression(module, **self.common, ridge=self.ridge, scale=self.scale)


@dataclass(frozen=True)
class CentredMeans(Convolved):
    """SimpleShot: a classifier of all training classes, whose features are compared."""

    batch_size: int = same_as(SimpleShot, "batch_size")

    def build(self, module: nn.Module, training: ImageEpisodes) -> EmbeddingMethod:
        """As of any of them."""
        head = nn.Linear(math.prod(embedded_shape(module, training)), len(training.images["train"]))
        return SimpleShot(module, CLASSIFICATION, self.batch_norm, head=head, batch_size=self.batch_size)


@dataclass(frozen=True)
class Transferred(Convolved):
    """Meta-transfer learning: a classifier of all training classes, and then episodes of the ways of the test."""

    fixed_ways: ClassVar[bool] = True
    episodic: ClassVar[bool] = True

    pretraining_iterations: int = same_as(MetaTransfer, "pretraining_iterations")  # type: ignore[misc]
    batch_size: int = same_as(MetaTransfer, "batch_size")
    scaled: bool = same_as(MetaTransfer, "scaled", flag="scales_and_shifts")
    scale_rate: float = same_as(MetaTransfer, "scale_rate")
    head_steps: int = same_as(MetaTransfer, "head_steps")
    head_step_size: float = same_as(MetaTransfer, "head_step_size")

    @property
    def without_effect(self) -> Mapping[str, str]:
        """The learning rate of scales and shifts, where there are none."""
        return {} if self.scaled else {"scale_rate": "scales_and_shifts"}

    def build(self, module: nn.Module, training: ImageEpisodes) -> EmbeddingMethod:
        """As of any of them; a task starts from a last layer that is 0 at first."""
        features, classes = math.prod(embedded_shape(module, training)), len(training.images["train"])
        task_head = nn.Linear(features, training.ways)
        nn.init.zeros_(task_head.weight)
        nn.init.zeros_(task_head.bias)
        names = ("pretraining_iterations", "batch_size", "scaled", "scale_rate", "head_steps", "head_step_size")
        chosen: dict[str, Any] = {name: getattr(self, name) for name in names}
        head = nn.Linear(features, classes)
        return MetaTransfer(module, CLASSIFICATION, self.batch_norm, head=head, task_head=task_head, **chosen)


EMBEDDING_METHODS: dict[str, type[Convolved]] = {
    "prototypical": Prototypes,
    "matching": Attention,
    "matching-fce": ContextAttention,
    "relation": Relations,
    "siamese": Pairs,
    "r2-d2": Ridge,
    "simple-shot": CentredMeans,
    "mtl": Transferred,
}


def embedding(method: Convolved, size: Sequence[int], filters: int) -> EmbeddingNet:
    """Return Conv-4 as a method wants it, with max pooling as published, or strided.

    Args:
        method: its settings.
        size: (H, W, C) of the images.
        filters: of each convolution.
    """
    pooled = EmbeddingNet.UNPADDED if method.maps else EmbeddingNet.POOLED
    return EmbeddingNet(size, filters, EmbeddingNet.STRIDED if method.strided else pooled, method.maps)


def embedded_shape(module: nn.Module, training: ImageEpisodes) -> tuple[int, ...]:
    """The shape of an embedding."""
    with torch.no_grad():
        return tuple(module(torch.zeros(2, *training.image_shape)).shape[1:])
