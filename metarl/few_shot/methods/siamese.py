"""Siamese networks (Koch et al. 2015): are two images of the same class?"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.core.parameters import Parameters
from metarl.core.settings import setting
from metarl.core.validation import require, require_whole
from metarl.few_shot.images.image_classes import ImagesBySplit, classes_of, split_of
from metarl.few_shot.method import State
from metarl.few_shot.methods.embedding import EmbeddingMethod, class_logsumexp
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks, ImageEpisodes, draw_distinct


@dataclass(frozen=True)
class Siamese(EmbeddingMethod):
    """Learns whether two images are of the same class, and takes the class of the support images most like the query.

        p(z, z') = sigmoid(comparison(|z - z'|)),    P(k) in proportion to the mean of p(z, z_i) over class k

    Training minimises the cross-entropy of p on pairs, half of them of the same class; its metric is the share of pairs
    that are judged right.

    Attributes:
        comparison: from features (..., F) to (..., 1), such as torch.nn.Linear(F, 1).
        pairs: of images in a training task.
    """

    comparison: nn.Module = field(kw_only=True)
    pairs: int = setting(128, "pairs of images in a training task", at_least=2, source="paper")

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The embedding, and the comparison."""
        return {"": self.module, "comparison.": self.comparison}

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return pairs of images of all training classes."""
        require(isinstance(task_distribution, ImageEpisodes), "task_distribution", task_distribution, "ImageEpisodes")
        return ImagePairs(task_distribution.images, self.pairs)  # type: ignore[attr-defined]

    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return features (M, N, F) and one-hot classes (M, N, ways) of the support examples."""
        return {"features": features.flatten(2), "members": members}

    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        apart = (features.flatten(2).unsqueeze(2) - state["features"].unsqueeze(1)).abs()  # (M, Q, N, F)
        scores = F.logsigmoid(self._logits(theta, apart.flatten(1, 2))).view(apart.shape[:3])
        sizes = state["members"].sum(dim=1, keepdim=True)
        return (class_logsumexp(scores, state["members"]) - sizes.log()).log_softmax(dim=2)

    def judge(
        self, theta: Parameters, state: State, features: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Parameters]:
        """Return the cross-entropy of pairs, and the share of them that is judged right.

        The pairs are the support and query images of the same number; their class is the same if their targets are.
        """
        same = (
            state["members"].gather(2, targets.unsqueeze(2)).squeeze(2)
        )  # support image i is of query image i's class
        logits = self._logits(theta, (features.flatten(2) - state["features"]).abs())
        losses = F.binary_cross_entropy_with_logits(logits, same.to(logits.dtype), reduction="none")
        return losses.mean(dim=1), ((logits > 0) == same).to(logits.dtype).mean(dim=1), {}

    def _logits(self, theta: Parameters, apart: Tensor) -> Tensor:
        return self.apply("comparison.", theta, (apart,), {})[0].squeeze(2)


class ImagePairs:
    """Pairs of images, half of them of the same class, in random order.

    As tasks they are P-way 1-shot with P queries: pair i is support image i and query image i. All support images are
    of classes of their own, and two images of a class are never the same one.

    Args:
        images: as of `ImageEpisodes`; at least two per class.
        pairs: P, of a task; at most as many as there are training classes.
    """

    def __init__(self, images: ImagesBySplit, pairs: int):
        require_whole("pairs", pairs, at_least=2)
        self._classes = classes_of(images)
        training = split_of(self._classes, "train")
        require(pairs <= len(training), "pairs", pairs, f"at most the {len(training)} training classes")
        training.require_examples("train", "2", 2)
        self.images, self.ways = dict(images), pairs

    def sample(self, num_tasks: int, split: str, rng: np.random.Generator) -> FewShotTasks:
        """Draw tasks: inputs (M, P, H, W, C) from 0 to 1, targets (M, P), support and query."""
        images = split_of(self._classes, split)
        pairs = self.ways
        classes = draw_distinct(rng, num_tasks, len(images), pairs)  # (M, P)
        examples = draw_distinct(rng, num_tasks * pairs, images.examples_of(classes.ravel()), 2)
        examples = examples.reshape(num_tasks, pairs, 2)
        own = np.broadcast_to(np.arange(pairs), (num_tasks, pairs))
        order = rng.permuted(own, axis=1)
        other = (own + rng.integers(1, pairs, size=(num_tasks, pairs))) % pairs  # any but the own one
        queries = np.where(order < pairs // 2, own, other)

        def drawn(numbers: np.ndarray, example: int) -> Examples:
            rows = np.arange(num_tasks)[:, None]
            inputs = images.drawn(classes[rows, numbers], examples[rows, numbers, example])
            return Examples(inputs, torch.from_numpy(numbers.copy()).to(inputs.device))

        return FewShotTasks(drawn(own, 0), drawn(queries, 1))
