"""Matching networks (Vinyals et al. 2016), without and with full context embeddings."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.core.parameters import Parameters
from metarl.core.settings import setting
from metarl.few_shot.method import State
from metarl.few_shot.methods.embedding import EmbeddingMethod, class_logsumexp, negative_squared_distances


@dataclass(frozen=True)
class Matching(EmbeddingMethod):
    """Attention over the support images.

        a_i = softmax_i s(z, z_i),    P(k) = sum of a_i over the support images i of class k

    where s is `scale` times the cosine, or minus `scale` times the squared distance. The paper has the cosine and no
    scale; then no P exceeds e^2 / (e^2 + N - 1) (e / (e + N - 1) for features of one sign), which trains worse.
    """

    distance: str = setting("squared", "what images are compared by", choices=("squared", "cosine"))
    scale: float = setting(1.0, "factor of the cosine or squared distance; 10 suits the cosine", more_than=0)

    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return features (M, N, F) and one-hot classes (M, N, ways) of the support examples."""
        return {"features": features.flatten(2), "members": members}

    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        similar = cosines if self.distance == "cosine" else negative_squared_distances
        scores = self.scale * similar(features.flatten(2), state["features"])
        return class_logsumexp(scores.log_softmax(dim=2), state["members"])


@dataclass(frozen=True)
class FullContextMatching(Matching):
    """Matching networks with full context embeddings: what an image is compared by depends on the whole support set.

    Predictions depend on the order of the support images, as in the paper.

    Attributes:
        context: of features, such as `ContextEmbeddings`: a module that maps those of the support (M, N, F) to new
            ones, and those of queries (M, Q, F) with the new ones of the support to new ones of the queries.
    """

    context: nn.Module = field(kw_only=True)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The embedding, and the context."""
        return {"": self.module, "context.": self.context}

    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return features with context (M, N, F) and one-hot classes (M, N, ways) of the support examples."""
        return super().learn(theta, self.apply_to_all("context.", theta, (features.flatten(2),)), members)

    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        found = self.apply_to_all("context.", theta, (state["features"], features.flatten(2)))
        return super().compare(theta, state, found)


class ContextEmbeddings(nn.Module):
    """The two recurrent networks of full context embeddings.

        g_i  = g'_i + h_i forwards + h_i backwards                  an LSTM in both directions over the support images
        h, c = LSTM([z', r], h, c);   h = h + z'                    `reads` times for each query image, from h = c = 0
        r    = sum_i softmax_i(h . g_i) g_i                         at first the mean of all g_i

    Deviation: the equations are those of common implementations, which differ from the paper in what the second LSTM
    takes: [z', r] and h, in place of z' and [h, r].

    Args:
        features: F, of each image.
        reads: how often a query image attends to the support.
    """

    def __init__(self, features: int, reads: int = 5):
        super().__init__()
        self.reads = reads
        self.support = nn.LSTM(features, features, bidirectional=True, batch_first=True)
        self.query = nn.LSTMCell(2 * features, features)

    def forward(self, support: Tensor, queries: Tensor | None = None) -> Tensor:
        """Features of the support (M, N, F) to g (M, N, F); or g, and features of queries, to those (M, Q, F) of h."""
        if queries is None:
            forwards, backwards = self.support(support)[0].chunk(2, dim=2)
            return support + forwards + backwards
        count, size = queries.shape[1:]
        plain = queries.flatten(0, 1)
        read = support.mean(dim=1, keepdim=True).expand(-1, count, -1)
        state = (torch.zeros_like(plain), torch.zeros_like(plain))
        for _ in range(self.reads):
            hidden, cell = self.query(torch.cat([plain, read.flatten(0, 1)], dim=1), state)
            state = (hidden + plain, cell)
            attention = (state[0].view(-1, count, size) @ support.mT).softmax(dim=2)
            read = attention @ support
        return state[0].view(-1, count, size)


def cosines(features: Tensor, others: Tensor) -> Tensor:
    """Return the cosine of the angle between each of features (M, Q, F) and others (M, N, F), (M, Q, N)."""
    return F.normalize(features, dim=2) @ F.normalize(others, dim=2).mT
