"""Siamese networks (Koch et al. 2015): are two images of the same class?"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.core.parameters import Parameters
from metarl.core.settings import setting
from metarl.core.validation import require
from metarl.few_shot.method import State
from metarl.few_shot.methods.embedding import EmbeddingMethod, class_logsumexp
from metarl.few_shot.tasks import FewShotDistribution, ImageEpisodes


@dataclass(frozen=True)
class Siamese(EmbeddingMethod):
    """Learns whether two images are of the same class, and takes the class of the support images most like the query.

        p(z, z') = sigmoid(comparison(|z - z'|)),    P(k) in proportion to the mean of p(z, z_i) over class k

    Training minimises the cross-entropy of p on pairs of images, where those of the same class weigh as much as those
    of different classes; its metric is the share of pairs that are judged right, weighted alike.

    Deviation: the paper draws each pair by itself. A training task here has two images of each of P classes, and its
    pairs are all P^2 of a first and a second image. Their gradient has the same expected value and less variance, for
    which no more images are embedded than for P pairs.

    Attributes:
        comparison: from features (..., F) to (..., 1), such as torch.nn.Linear(F, 1).
        pairs: P.
    """

    comparison: nn.Module = field(kw_only=True)
    pairs: int = setting(128, "classes of a training task, two images of each", at_least=2, source="paper")

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The embedding, and the comparison."""
        return {"": self.module, "comparison.": self.comparison}

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return episodes with two images of each class."""
        require(isinstance(task_distribution, ImageEpisodes), "task_distribution", task_distribution, "ImageEpisodes")
        training = task_distribution.images["train"]  # type: ignore[attr-defined]
        require(self.pairs <= len(training), "pairs", self.pairs, f"at most the {len(training)} training classes")
        return ImageEpisodes({"train": training}, self.pairs, shots=1, queries=1)

    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return features (M, N, F) and one-hot classes (M, N, ways) of the support examples."""
        return {"features": features.flatten(2), "members": members}

    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        scores = F.logsigmoid(self._pairs(theta, state, features))
        sizes = state["members"].sum(dim=1, keepdim=True)
        return (class_logsumexp(scores, state["members"]) - sizes.log()).log_softmax(dim=2)

    def judge(
        self, theta: Parameters, state: State, features: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Parameters]:
        """Return the cross-entropy of all pairs of a support and a query image, and the share that is judged right."""
        logits = self._pairs(theta, state, features)  # (M, Q, N)
        same = state["members"].transpose(1, 2).gather(1, targets.unsqueeze(2).expand_as(logits))
        losses = F.binary_cross_entropy_with_logits(logits, same.to(logits.dtype), reduction="none")
        right = ((logits > 0) == same).to(logits.dtype)
        weights = torch.where(same, 0.5 / same.sum((1, 2), keepdim=True), 0.5 / (~same).sum((1, 2), keepdim=True))
        return (weights * losses).sum((1, 2)), (weights * right).sum((1, 2)), {}

    def _pairs(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Logits of p for each query image with each support image, (M, Q, N)."""
        apart = (features.flatten(2).unsqueeze(2) - state["features"].unsqueeze(1)).abs()  # (M, Q, N, F)
        return self.apply("comparison.", theta, (apart.flatten(1, 2),), {})[0].view(apart.shape[:3])
