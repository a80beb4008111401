"""Recurrent networks for `SequenceClassifier`: MANN, which has a memory (Santoro et al. 2016), and an LSTM without one.

Axes: M tasks, T positions of a sequence, R read heads, S slots of the memory, W numbers in a slot.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.core.validation import require
from metarl.few_shot.method import State
from metarl.few_shot.networks import averaged

USAGE_DECAY = 0.95
_FIRST_CONTENT = 1e-6  # of every slot
_EPSILON = 1e-6  # in the root of a cosine, so that empty slots are like nothing


class _SequenceNet(nn.Module):
    """What the networks share: images are averaged to a size, flattened, and joined with the previous label."""

    def __init__(self, size: Sequence[int], ways: int, pixels: int):
        super().__init__()
        self.ways, self.pixels = ways, min(pixels, *size[:2])
        self.features = self.pixels**2 * size[2] + ways

    def joined(self, images: Tensor, previous: Tensor) -> Tensor:
        """Images (M, T, H, W, C) and previous labels (M, T, ways) to (M, T, features)."""
        return torch.cat([averaged(images, self.pixels), previous], dim=2)


class LSTMNet(_SequenceNet):
    """An LSTM without a memory of its own: the baseline of MANN.

    Args:
        size: (H, W, C) of the images.
        ways: classes of a task.
        hidden: units.
        pixels: height and width to which images are averaged.
    """

    def __init__(self, size: Sequence[int], ways: int, hidden: int = 200, pixels: int = 20):
        super().__init__(size, ways, pixels)
        self.lstm = nn.LSTM(self.features, hidden, batch_first=True)
        self.output = nn.Linear(hidden, ways)

    def forward(self, images: Tensor, previous: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Images (M, T, H, W, C) and previous labels (M, T, ways) to logits (M, T, ways) and the state."""
        inputs = self.joined(images, previous)
        before = None if state is None else (state["hidden"].unsqueeze(0), state["cell"].unsqueeze(0))
        outputs, (hidden, cell) = self.lstm(inputs, before)
        return self.output(outputs), {"hidden": hidden[0], "cell": cell[0]}


class MemoryNet(_SequenceNet):
    """MANN: an LSTM that writes into and reads from a memory, one of its own for each task.

    At position t, with the LSTM's output h and what was read before, r:

        h, c  = LSTM([x_t, y_{t-1}, r], h, c)
        k     = tanh(W_k h),    g = sigmoid(w_g h)                       a key and a gate of each read head
        w_lu  = one-hot in the least used slot for the first head, in the next one for the second, ...
        w_w   = g w_r + (1 - g) w_lu                                     where it was read last, or what is least used
        M     = M, with zeros in the least used slot, + sum over heads w_w k'
        w_r   = softmax over slots of cos(k, M)
        r     = w_r M
        w_u   = 0.95 w_u + sum over heads (w_r + w_w)
        o     = W_o [h, r]

    No gradient runs through the choice of the least used slots. At first M is 1e-6 everywhere, r, h and c are 0, and
    w_r and w_u are one-hot in the first slot.

    Deviation: in the paper's formula every head writes into all R least used slots; here, as in a common
    implementation, each has one of them. Images are averaged from their size to `pixels`, which is the paper's.

    Args:
        size: (H, W, C) of the images.
        ways: classes of a task.
        hidden: units of the LSTM.
        slots: S.
        width: W.
        reads: R.
        pixels: height and width to which images are averaged.
    """

    def __init__(
        self,
        size: Sequence[int],
        ways: int,
        hidden: int = 200,
        memory: tuple[int, int] = (128, 40),
        reads: int = 4,
        pixels: int = 20,
    ):
        require(reads <= memory[0], "reads", reads, f"at most the {memory[0]} slots of the memory")
        super().__init__(size, ways, pixels)
        self.hidden, self.reads = hidden, reads
        self.slots, self.width = memory
        self.inputs = nn.Linear(self.features, 4 * hidden)
        self.recurrent = nn.Linear(hidden + reads * self.width, 4 * hidden, bias=False)
        self.heads = nn.Linear(hidden, reads * (self.width + 1))
        self.output = nn.Linear(hidden + reads * self.width, ways)
        for layer in (self.inputs, self.recurrent, self.heads, self.output):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor, previous: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Images (M, T, H, W, C) and previous labels (M, T, ways) to logits (M, T, ways) and the state."""
        inputs = self.inputs(self.joined(images, previous))  # of all positions at once
        state = self.first_state(inputs) if state is None else state
        found = []
        for at_once in inputs.unbind(dim=1):
            state = self._step(at_once, state)
            found.append(torch.cat([state["hidden"], state["read"].flatten(1)], dim=1))
        return self.output(torch.stack(found, dim=1)), state

    def first_state(self, like: Tensor) -> State:
        """Return the state before the first position, for as many tasks, and of the type, as a tensor (M, ...)."""
        count = len(like)
        first_slot = like.new_zeros(count, self.slots)
        first_slot[:, 0] = 1
        return {
            "hidden": like.new_zeros(count, self.hidden),
            "cell": like.new_zeros(count, self.hidden),
            "memory": like.new_full((count, self.slots, self.width), _FIRST_CONTENT),
            "read": like.new_zeros(count, self.reads, self.width),
            "read_weights": first_slot.unsqueeze(1).repeat(1, self.reads, 1),
            "usage": first_slot,
        }

    def _step(self, inputs: Tensor, state: State) -> State:
        """The state after a position, given what the LSTM's gates get of its image and label, (M, 4 hidden)."""
        before = torch.cat([state["hidden"], state["read"].flatten(1)], dim=1)
        gates, new = (inputs + self.recurrent(before)).split([3 * self.hidden, self.hidden], dim=1)
        forget, enter, leave = gates.sigmoid().chunk(3, dim=1)
        cell = forget * state["cell"] + enter * new.tanh()
        hidden = leave * cell.tanh()
        keys, gate = self.heads(hidden).split([self.reads * self.width, self.reads], dim=1)
        keys = keys.tanh().view(-1, self.reads, self.width)
        access = read_and_write(state["memory"], keys, gate.sigmoid(), state["read_weights"], state["usage"])
        return {"hidden": hidden, "cell": cell, **access}


def read_and_write(memory: Tensor, keys: Tensor, gates: Tensor, read_weights: Tensor, usage: Tensor) -> State:
    """Write keys into a memory where it was last read or is least used, and then read; see `MemoryNet`.

    Args:
        memory: (M, S, W).
        keys: (M, R, W).
        gates: how much goes where it was last read, (M, R).
        read_weights: of the position before, (M, R, S).
        usage: of the position before, (M, S).

    Returns:
        `memory`, `read` (M, R, W), `read_weights` and `usage` afterwards.
    """
    least_used = least_used_slots(usage, keys.shape[1])
    gates = gates.unsqueeze(2)
    write_weights = gates * read_weights + (1 - gates) * least_used
    memory = memory * (1 - least_used[:, 0]).unsqueeze(2) + write_weights.mT @ keys
    read_weights = cosines(keys, memory).softmax(dim=2)
    with torch.no_grad():
        usage = USAGE_DECAY * usage + (read_weights + write_weights).sum(dim=1)
    return {"memory": memory, "read": read_weights @ memory, "read_weights": read_weights, "usage": usage}


def least_used_slots(usage: Tensor, heads: int) -> Tensor:
    """Return for each head one slot, one-hot (M, R, S): the least used one for the first, and so on.

    Of slots that are used alike the first one counts as used least.
    """
    slots = usage.argsort(dim=1, stable=True)[:, :heads]
    return F.one_hot(slots, usage.shape[1]).to(usage.dtype)


def cosines(keys: Tensor, memory: Tensor) -> Tensor:
    """Return the cosine of each key (M, R, W) with each slot of the memory (M, S, W), (M, R, S); about 0 if empty."""
    squares = keys.square().sum(dim=2).unsqueeze(2) * memory.square().sum(dim=2).unsqueeze(1)
    return keys @ memory.mT * (squares + _EPSILON).rsqrt()
