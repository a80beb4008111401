"""The memory module of Kaiser et al. (2017), "Learning to remember rare events": keys, classes and ages."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.core.parameters import Parameters
from metarl.core.settings import setting
from metarl.core.validation import require
from metarl.few_shot.method import State
from metarl.few_shot.methods.embedding import EmbeddingMethod
from metarl.few_shot.methods.sequences import require_shuffled
from metarl.few_shot.tasks import FewShotDistribution


@dataclass(frozen=True)
class MemoryModule(EmbeddingMethod):
    """A memory of its own for each task, into which the support examples are written in their order.

        q = projection(z) / |projection(z)|                  the class of q is that of the slot with the nearest key

    The memory is empty at first. For each support example, its class y known:

        nearest slot of class y   its key becomes (q + key) / |q + key|, and its age 0
        nearest slot of another   the oldest slot gets the key q, the class y, and the age 0
        all slots                 grow older by 1

    Training minimises, at every support and query example, max(0, w - r + margin) - margin, where r and w are the
    cosines with the nearest slots of the right class and of wrong ones, 0 where there is none. Keys in the memory carry
    no gradient.

    Deviations: the paper's code shares one memory between the episodes of a batch, whose classes it keeps apart, and
    takes a gradient step at every example; here there is one per episode. There is no dropout, and the oldest slot is
    chosen without random noise. P is that of a softmax over the nearest slots of the classes.

    Attributes:
        projection: from features (..., F) to (..., D), such as torch.nn.Linear(F, 128, bias=False).
    """

    projection: nn.Module = field(kw_only=True)
    slots: int = setting(256, "slots of a task's memory", at_least=1)
    margin: float = setting(0.1, "by which the right class is to be nearer than others", more_than=0, source="paper")

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The embedding, and the projection."""
        return {"": self.module, "projection.": self.projection}

    @property
    def scale(self) -> float:
        """Factor of cosines in the probabilities, as in the paper's code."""
        return max(1.0, math.log(0.2 * self.slots) / self.margin)

    @property
    def reads_in_order(self) -> bool:
        """True: from first to last."""
        return True

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return the distribution; ValueError if its support images are in the order of classes."""
        require(self.training_ways is None, "training_ways", self.training_ways, "None")
        return require_shuffled(task_distribution)

    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return the memory after the support: `keys` (M, S, D), `classes` one-hot (M, S, ways), `ages` (M, S).

        With it `losses` (M, N), of every support example before it was written.
        """
        queries = self._queries(theta, features)
        memory, losses = self._empty(queries, members), []
        for query, label in zip(queries.unbind(dim=1), members.unbind(dim=1), strict=True):
            cosines = (memory["keys"] @ query.unsqueeze(2)).squeeze(2)
            losses.append(margin_loss(cosines, memory["classes"], label, self.margin))
            memory = written(memory, query.detach(), label)
        return {**memory, "losses": torch.stack(losses, dim=1)}

    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        cosines = self._queries(theta, features) @ state["keys"].mT  # (M, Q, S)
        return self._log_probabilities(cosines, state["classes"])

    def judge(
        self, theta: Parameters, state: State, features: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Parameters]:
        """Return the mean loss over support and query examples, and the metric of the query examples."""
        cosines = self._queries(theta, features) @ state["keys"].mT
        labels = F.one_hot(targets, state["classes"].shape[2]).bool()
        classes = state["classes"].unsqueeze(1).expand(-1, targets.shape[1], -1, -1)
        losses = margin_loss(cosines.flatten(0, 1), classes.flatten(0, 1), labels.flatten(0, 1), self.margin)
        every = torch.cat([state["losses"], losses.view(targets.shape)], dim=1)
        with torch.no_grad():
            metric = self.criterion.metric(self._log_probabilities(cosines, state["classes"]), targets)
        return every.mean(dim=1), metric, {}

    def _queries(self, theta: Parameters, features: Tensor) -> Tensor:
        """Features (M, N, ...) as vectors of length one, (M, N, D)."""
        return F.normalize(self.apply_to_all("projection.", theta, (features.flatten(2),)), dim=2)

    def _empty(self, queries: Tensor, members: Tensor) -> State:
        count, ways = members.shape[0], members.shape[2]
        return {
            "keys": queries.new_zeros(count, self.slots, queries.shape[2]),
            "classes": members.new_zeros(count, self.slots, ways),
            "ages": torch.zeros(count, self.slots, dtype=torch.int64, device=members.device),
        }

    def _log_probabilities(self, cosines: Tensor, classes: Tensor) -> Tensor:
        """Cosines with slots (M, Q, S) to log-probabilities (M, Q, ways), of a class without a slot as of cosine -1."""
        of_class = torch.where(classes.unsqueeze(1), cosines.unsqueeze(3), -1.0)
        return (self.scale * of_class.amax(dim=2)).log_softmax(dim=2)


def written(memory: State, queries: Tensor, labels: Tensor) -> State:
    """Write an example into each task's memory, see `MemoryModule`.

    Args:
        memory: keys (M, S, D), classes (M, S, ways) and ages (M, S); classes of empty slots are zeros.
        queries: of length one (M, D).
        labels: one-hot (M, ways).
    """
    keys, classes, ages = memory["keys"], memory["classes"], memory["ages"]
    cosines = (keys @ queries.unsqueeze(2)).squeeze(2)
    nearest = cosines.masked_fill(~classes.any(dim=2), -torch.inf).argmax(dim=1, keepdim=True)
    hit = (classes & labels.unsqueeze(1)).any(dim=2).gather(1, nearest)  # (M, 1)
    slot = torch.where(hit, nearest, ages.argmax(dim=1, keepdim=True))
    chosen = (torch.arange(keys.shape[1], device=slot.device) == slot).unsqueeze(2)  # (M, S, 1)
    averaged = F.normalize(queries.unsqueeze(1) + keys, dim=2)
    new_keys = torch.where(hit.unsqueeze(2), averaged, queries.unsqueeze(1))
    return {
        "keys": torch.where(chosen, new_keys, keys),
        "classes": torch.where(chosen, labels.unsqueeze(1), classes),
        "ages": torch.where(chosen.squeeze(2), 0, ages + 1),
    }


def margin_loss(cosines: Tensor, classes: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Return max(0, w - r + margin) - margin of look-ups, (M,); empty slots are neither right nor wrong.

    Args:
        cosines: with every slot (M, S).
        classes: of the slots, one-hot (M, S, ways).
        labels: one-hot (M, ways).
        margin: by which r is to exceed w.
    """
    right = (classes & labels.unsqueeze(1)).any(dim=2)
    wrong = classes.any(dim=2) & ~right
    nearest = [torch.where(of.any(dim=1), _largest(cosines, of), 0.0) for of in (wrong, right)]
    return F.relu(nearest[0] - nearest[1] + margin) - margin


def _largest(values: Tensor, chosen: Tensor) -> Tensor:
    """The largest of the chosen values in each row; a number below all cosines where none is chosen."""
    return values.masked_fill(~chosen, -2.0).amax(dim=1)
