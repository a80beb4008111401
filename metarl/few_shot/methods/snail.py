"""SNAIL (Mishra et al. 2018): causal convolutions and attention over the sequence of a task's examples."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.core.parameters import Parameters
from metarl.core.validation import require
from metarl.few_shot.method import State
from metarl.few_shot.methods.embedding import EmbeddingMethod
from metarl.few_shot.methods.sequences import require_shuffled
from metarl.few_shot.tasks import FewShotDistribution


@dataclass(frozen=True)
class SNAIL(EmbeddingMethod):
    """A network reads the support examples in their order, and then one query example whose label is not told.

        tokens [z_1, y_1], ..., [z_N, y_N], [z, 0];    log P = log softmax of the last token's outputs

    The number of classes is fixed, as every class has an output of its own.

    Attributes:
        network: of tokens, such as `SNAILNet`: from those of the support (M, N, F) and of queries (M, Q, F) to logits
            (M, Q, ways). Its attribute `ways` is the number of classes.
    """

    network: nn.Module = field(kw_only=True)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The embedding, and the network of tokens."""
        return {"": self.module, "network.": self.network}

    @property
    def reads_in_order(self) -> bool:
        """True: from first to last."""
        return True

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return the distribution; ValueError if its support images are in the order of classes."""
        require(self.training_ways is None, "training_ways", self.training_ways, "None, as the classes are fixed")
        return require_shuffled(task_distribution)

    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return the tokens of the support (M, N, F + ways)."""
        ways, most = members.shape[2], int(self.network.ways)  # type: ignore[arg-type]
        require(ways <= most, "classes of a task", ways, f"at most {most}, as the network has outputs")
        labels = F.pad(members.to(features.dtype), (0, most - ways))
        return {"tokens": torch.cat([features.flatten(2), labels], dim=2)}

    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        tokens = F.pad(features.flatten(2), (0, int(self.network.ways)))  # type: ignore[arg-type]
        return self.apply_to_all("network.", theta, (state["tokens"], tokens)).log_softmax(dim=2)


class SNAILNet(nn.Module):
    """Attention, temporal convolutions, attention, temporal convolutions, attention; a linear layer at the end.

    Every block joins its outputs to its inputs. As no token sees a later one, the support's tokens are the same for all
    query examples and are computed once: each query example is a token at position N of a sequence of its own, which
    shares the first N. A convolution of two taps and dilation d is a linear layer of a token and the one d before it.

    Args:
        features: F, of an embedding.
        ways: classes of a task.
        length: N + 1, tokens of a sequence; it decides how many convolutions reach all of it.
        filters: of a convolution.
        heads: sizes of keys and values of each attention.
    """

    def __init__(
        self,
        features: int,
        ways: int,
        length: int,
        filters: int = 128,
        heads: tuple[tuple[int, int], ...] = ((64, 32), (256, 128), (512, 256)),
    ):
        super().__init__()
        self.ways = ways
        dilations = [2**power for power in range(math.ceil(math.log2(length)))]
        channels, blocks = features + ways, list[nn.Module]()
        for number, (keys, values) in enumerate(heads):
            for dilation in dilations if number else ():
                blocks.append(DenseBlock(channels, filters, dilation))
                channels += filters
            blocks.append(CausalAttention(channels, keys, values))
            channels += values
        self.blocks = nn.ModuleList(blocks)
        self.output = nn.Linear(channels, ways)

    def forward(self, support: Tensor, queries: Tensor) -> Tensor:
        """Tokens of the support (M, N, F) and of queries (M, Q, F) to logits of the queries (M, Q, ways)."""
        tokens, first = torch.cat([support, queries], dim=1), support.shape[1]
        for block in self.blocks:
            tokens = torch.cat([tokens, block(tokens, first)], dim=2)
        return self.output(tokens[:, first:])


class DenseBlock(nn.Module):
    """tanh(a) sigmoid(b) of two causal convolutions a and b with two taps (van den Oord et al. 2016)."""

    def __init__(self, channels: int, filters: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.taps = nn.Linear(2 * channels, 2 * filters)

    def forward(self, tokens: Tensor, first: int) -> Tensor:
        """Tokens (M, N + Q, C), of which those from `first` = N on are queries, to (M, N + Q, filters)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).clamp(max=first)
        before = (positions - self.dilation + 1).clamp(min=0)  # 0 is a token of zeros before the sequence
        earlier = torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1)[:, before]
        first_half, second_half = self.taps(torch.cat([earlier, tokens], dim=2)).chunk(2, dim=2)
        return first_half.tanh() * second_half.sigmoid()


class CausalAttention(nn.Module):
    """Attention of every token to itself and to those before it: softmax over keys of q . k / sqrt(size of keys)."""

    def __init__(self, channels: int, keys: int, values: int):
        super().__init__()
        self.sizes = [keys, keys, values]
        self.projections = nn.Linear(channels, sum(self.sizes))

    def forward(self, tokens: Tensor, first: int) -> Tensor:
        """Tokens (M, N + Q, C), of which those from `first` = N on are queries, to (M, N + Q, values)."""
        queries, keys, values = self.projections(tokens).split(self.sizes, dim=2)
        count = tokens.shape[1]
        seen = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril()
        seen[first:, first:] = torch.eye(count - first, dtype=torch.bool, device=tokens.device)
        scores = (queries @ keys.mT / self.sizes[0] ** 0.5).masked_fill(~seen, -torch.inf)
        return scores.softmax(dim=2) @ values
