"""Relation networks (Sung et al. 2018): a learned comparison of maps."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.core.parameters import Parameters
from metarl.few_shot.embedding_networks import EmbeddingBlock
from metarl.few_shot.method import State
from metarl.few_shot.methods.centroids import class_means
from metarl.few_shot.methods.embedding import EmbeddingMethod


@dataclass(frozen=True)
class Relation(EmbeddingMethod):
    """A network compares the map of each query image with that of each class.

        map_k = mean of the maps of class k,   r_k = sigmoid(relation(map_k, map)),    P(k) = r_k / sum_j r_j

    Training minimises the squared error of r against one-hot classes, as in the paper; the most probable class is that
    of the largest r. Deviation: the paper adds the maps of a class. With as many shots as in training their mean is the
    same but for a factor, and with others it stays of the size that the comparison was trained on.

    Attributes:
        module: the embedding, to maps.
        relation: such as `RelationNet`: from maps of classes (ways, H, W, C) and of queries (Q, H, W, C) to scores
            (Q, ways), before the sigmoid.
    """

    relation: nn.Module = field(kw_only=True)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The embedding, and the comparison."""
        return {"": self.module, "relation.": self.relation}

    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return the maps of classes (M, ways, H, W, C).

        Where batch norms keep the support's statistics, those of the comparison are of its images with all classes.
        """
        maps = class_means(features, members)
        if self.batch_norm != "support":
            return {"maps": maps}
        return {"maps": maps, "statistics": self.apply("relation.", theta, (maps, features), {})[1]}

    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        return _log_shares(self._scores(theta, state, features)[0])

    def judge(
        self, theta: Parameters, state: State, features: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Parameters]:
        """Return the mean squared error over queries and classes, the metric, and the comparison's statistics."""
        scores, seen = self._scores(theta, state, features)
        with torch.no_grad():
            metric = self.criterion.metric(_log_shares(scores), targets)
        wanted = F.one_hot(targets, scores.shape[2]).to(scores.dtype)
        return (scores.sigmoid() - wanted).square().mean(dim=(1, 2)), metric, seen

    def _scores(self, theta: Parameters, state: State, features: Tensor) -> tuple[Tensor, Parameters]:
        return self.apply("relation.", theta, (state["maps"], features), self.statistics(theta, state))


class RelationNet(nn.Module):
    """Compares maps: two blocks of convolutions on both maps joined, and two linear layers.

    The first convolution of joined maps is a sum of two, one of the class and one of the query, so that it is computed
    for each map and not for each pair.

    Args:
        size: (H, W, C) of the maps.
        filters: of the blocks.
        hidden: outputs of the first linear layer.
    """

    def __init__(self, size: tuple[int, int, int], filters: int = 64, hidden: int = 8):
        super().__init__()
        height, width, self.channels = size
        pooled = [min(height, width) >= 2, min(height, width) >= 4]
        self.first = EmbeddingBlock(2 * self.channels, filters, pooled=pooled[0])
        self.second = EmbeddingBlock(filters, filters, pooled=pooled[1])
        shrink = 2 ** sum(pooled)
        features = (height // shrink) * (width // shrink) * filters
        self.head = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, classes: Tensor, queries: Tensor) -> Tensor:
        """Maps of classes (N, H, W, C) and of queries (Q, H, W, C) to scores (Q, N)."""
        of_classes = self.first.convolved(classes, slice(0, self.channels))
        of_queries = self.first.convolved(queries, slice(self.channels, None))
        pairs = (of_queries.unsqueeze(1) + of_classes).flatten(0, 1)  # (Q N, H, W, filters)
        found = self.second(self.first.activated(pairs)).flatten(1)
        return self.head(found).view(len(queries), len(classes))


def _log_shares(scores: Tensor) -> Tensor:
    """The logarithm of sigmoid(scores) (M, Q, ways), divided by its sum over the classes."""
    return F.logsigmoid(scores).log_softmax(dim=2)
