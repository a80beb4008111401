"""Meta networks (Munkhdalai and Yu 2017): fast weights that are made from gradients, beside slow ones.

Axes: M tasks, N support examples, R = M N rows, each with weights of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarl.core.parallel import own_copy
from metarl.core.parameters import Parameters, parameters_of
from metarl.core.validation import require
from metarl.few_shot.convolution import Convolution
from metarl.few_shot.method import SharedMethod, State, first_rows
from metarl.few_shot.methods.learned_optimisers import log_and_sign
from metarl.few_shot.methods.matching import cosines
from metarl.few_shot.methods.sequences import require_shuffled
from metarl.few_shot.tasks import Examples, FewShotDistribution

LOG_SCALE = 7.0


@dataclass(frozen=True)
class MetaNetworks(SharedMethod):
    """A network b that classifies and a network u that compares, both with slow weights, and fast weights for a task.

        u+    = LSTM over parts of the support of the gradient of u's loss, a coordinate at a time
        r_i   = what u makes of support image x_i with u and u+
        b+_i  = MLP of the gradient of b's loss on (x_i, y_i), a coordinate at a time
        b+    = sum_i a_i b+_i,    a = softmax_i cos(r, r_i),    of a query image whose comparison is r
        P     = softmax of b's outputs with b and b+

    Losses are cross-entropies with slow weights alone. Their gradients are constants, so no second derivatives are
    taken, and they are given as (log |g| / 7, sign g). Convolutions have an LSTM and an MLP, linear layers others.

    Deviations: each image is normalised by itself, where the authors' code has batch norm; convolutions are strided and
    fewer. As in that code, u learns from cross-entropy; the paper has pairs of images where there is one shot.

    Attributes:
        module: b, such as `AugmentedNet`.
        key: u, of the same kind.
        learners: such as `WeightLearners`, which make fast weights.
        parts_of_support: over which the LSTM goes, at most.
    """

    key: nn.Module = field(kw_only=True)
    learners: nn.Module = field(kw_only=True)
    parts_of_support: int = 5

    def meta_parameters(self) -> Parameters:
        """Return the slow weights of both networks, and the parameters of the learners of fast ones."""
        parts = {"": self.module, "key.": self.key, "learners.": self.learners}
        return {f"{prefix}{name}": value for prefix, of in parts.items() for name, value in parameters_of(of).items()}

    @property
    def reads_in_order(self) -> bool:
        """True: from first to last."""
        return True

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return the distribution; ValueError if its support images are in the order of classes."""
        return require_shuffled(task_distribution)

    def adapt(self, theta: Parameters, support: Examples) -> State:
        """Return u's fast weights (M, ...), b's of every support image (M, N, ...), and comparisons r (M, N, F)."""
        own = first_rows(theta)
        gradients = [self.example_gradients(prefix, own, support) for prefix in ("key.", "")]
        return self.learn(own, support.inputs, *gradients)

    def predict(self, theta: Parameters, state: State, inputs: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        own = first_rows(theta)
        attention = cosines(self._compared(own, state["key_fast"], inputs), state["keys"]).softmax(dim=2)
        fast = {  # (M, Q, ...)
            name: (attention @ of.flatten(2)).unflatten(2, of.shape[2:]) for name, of in state["fast"].items()
        }
        logits, _ = self._call("", own, inputs, {name: of.flatten(0, 1) for name, of in fast.items()})
        return logits.log_softmax(dim=2)

    def example_gradients(self, prefix: str, theta: Parameters, support: Examples) -> Parameters:
        """Return the gradient of the loss on every support example in a network's slow weights, (M, N, ...)."""
        slow = {name: theta[prefix + name].detach() for name in self._names(prefix)}
        rows = support.targets.shape.numel()
        with torch.enable_grad():
            each = {name: value.expand(rows, *value.shape).requires_grad_() for name, value in slow.items()}
            logits = functional_call(own_copy(self._part(prefix)), slow, (support.inputs.flatten(0, 1), None, each))[0]
            loss = F.cross_entropy(logits, support.targets.flatten(), reduction="sum")
            found = torch.autograd.grad(loss, list(each.values()))
        return {n: of.unflatten(0, support.targets.shape) for n, of in zip(each, found, strict=True)}

    def learn(self, theta: Parameters, inputs: Tensor, key_gradients: Parameters, gradients: Parameters) -> State:
        """Make fast weights of the gradients on every support example, see `adapt`."""
        count = inputs.shape[1]
        parts = torch.arange(count, device=inputs.device).tensor_split(min(self.parts_of_support, count))
        over_parts = {  # (parts, M, ...)
            name: torch.stack([of[:, part].mean(dim=1) for part in parts]) for name, of in key_gradients.items()
        }
        learners = {name: theta[f"learners.{name}"] for name in self._names("learners.")}
        called = own_copy(self.learners)
        key_fast = functional_call(called, learners, (over_parts, True))
        fast = functional_call(called, learners, (gradients, False))
        return {"key_fast": key_fast, "fast": fast, "keys": self._compared(theta, key_fast, inputs)}

    def _compared(self, theta: Parameters, fast: Parameters, inputs: Tensor) -> Tensor:
        """What u makes of images (M, N, ...) with a task's fast weights, (M, N, F)."""
        rows = {name: of.repeat_interleave(inputs.shape[1], dim=0) for name, of in fast.items()}
        return self._call("key.", theta, inputs, rows)[1]

    def _call(self, prefix: str, theta: Parameters, inputs: Tensor, fast: Parameters) -> tuple[Tensor, Tensor]:
        """Logits and comparisons (M, N, ...) of inputs (M, N, ...), with fast weights for each of the M N rows."""
        slow = {name: theta[prefix + name] for name in self._names(prefix)}
        found = functional_call(own_copy(self._part(prefix)), slow, (inputs.flatten(0, 1), fast, None))
        logits, compared = (of.unflatten(0, inputs.shape[:2]) for of in found)
        return logits, compared

    def _part(self, prefix: str) -> nn.Module:
        return {"": self.module, "key.": self.key, "learners.": self.learners}[prefix]

    def _names(self, prefix: str) -> list[str]:
        return [name for name, _ in self._part(prefix).named_parameters()]


class AugmentedNet(nn.Module):
    """Four strided convolutions and two linear layers, without biases, whose layers take fast weights as well.

    A layer's output is relu(norm(W h)) + relu(norm(W+ h)), with W+ the fast weights; norm gives each image mean 0 and
    variance 1 after convolutions. The last layer has no ReLU: W h + W+ h. The first linear layer, without its ReLU, is
    what images are compared by.

    Args:
        size: (H, W, C) of the images.
        ways: classes of a task.
        filters: of each convolution.
        hidden: outputs of the first linear layer.
    """

    def __init__(self, size: Sequence[int], ways: int, filters: int = 32, hidden: int = 64):
        super().__init__()
        height, width, channels = size
        self.convolutions = nn.ModuleList()
        for _ in range(4):
            self.convolutions.append(Convolution(channels, filters, stride=2))
            height, width, channels = (height + 1) // 2, (width + 1) // 2, filters
        self.first = nn.Parameter(torch.empty(height * width * channels, hidden))
        self.last = nn.Parameter(torch.empty(hidden, ways))
        for weight in (self.first, self.last):
            nn.init.xavier_uniform_(weight)

    def forward(self, images: Tensor, fast: Parameters | None, rows: Parameters | None) -> tuple[Tensor, Tensor]:
        """Images (R, H, W, C) to logits (R, ways) and comparisons (R, hidden).

        Args:
            images: of all rows.
            fast: fast weights (R, ...) by the names of the parameters, or None for none.
            rows: weights (R, ...) that take the place of the parameters, or None for these.
        """
        slow = rows or dict(self.named_parameters())

        def both(inputs: Tensor, name: str) -> list[Tensor]:
            """Inputs (R, n, in) times slow and fast weights."""
            return [inputs @ weights[name] for weights in (slow, fast) if weights is not None]

        hidden = images
        for number, convolution in enumerate(self.convolutions):
            patches = convolution.patches(hidden)  # type: ignore[operator]
            products = both(patches.flatten(1, 2), f"convolutions.{number}.weight")
            normal = [F.relu(F.layer_norm(of, of.shape[1:])) for of in products]
            hidden = torch.stack(normal).sum(dim=0).unflatten(1, patches.shape[1:3])
        products = both(hidden.flatten(1).unsqueeze(1), "first")
        activated = torch.stack([F.relu(of) for of in products]).sum(dim=0)
        logits = torch.stack(both(activated, "last")).sum(dim=0)
        return logits.squeeze(1), torch.stack(products).sum(dim=0).squeeze(1)


class WeightLearners(nn.Module):
    """What makes fast weights of gradients, a coordinate at a time: for convolutions and for linear layers apart.

    The last layers start small, so that at first the fast weights are.

    Args:
        hidden: units.
    """

    def __init__(self, hidden: int = 20):
        super().__init__()
        self.hidden = hidden
        kinds = ("convolutions", "linear")
        self.cells = nn.ModuleDict({kind: nn.LSTMCell(2, hidden) for kind in kinds})
        self.heads = nn.ModuleDict({kind: nn.Linear(hidden, 1) for kind in kinds})
        self.networks = nn.ModuleDict(
            {
                kind: nn.Sequential(
                    nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
                )
                for kind in kinds
            }
        )
        for last in (*self.heads.values(), *(network[-1] for network in self.networks.values())):  # type: ignore
            nn.init.normal_(last.weight, std=0.01)
            nn.init.zeros_(last.bias)

    def forward(self, gradients: Parameters, recurrent: bool) -> Parameters:
        """Gradients of any shape, by the names of the weights, to fast weights of that shape.

        Args:
            gradients: by name.
            recurrent: whether their first axis is that of the LSTM's steps, of which only the last one's output counts.
        """
        found = {}
        for name, of in gradients.items():
            kind = "convolutions" if name.startswith("convolutions") else "linear"
            values = log_and_sign(of, LOG_SCALE)
            if not recurrent:
                found[name] = self.networks[kind](values).squeeze(-1)
                continue
            memory: tuple[Tensor, Tensor] | None = None
            for step in values.flatten(1, -2).unbind():
                memory = self.cells[kind](step, memory)
            require(memory is not None, "steps", 0, "at least 1")
            found[name] = self.heads[kind](memory[0]).view(of.shape[1:])  # type: ignore[index]
        return found
