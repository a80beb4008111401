"""T-nets and MT-nets (Lee and Choi 2018): inner steps in a learned metric, and in a learned subspace.

    layer        y = T (W x + b)
    inner step   W' = W - alpha mask dL/dW,  b' = b - alpha mask dL/db,  T stays

A T-net is MAML on a module with such layers, whose rule adapts the weights and biases alone: as T is between them and
the loss, an inner step moves the layer's outputs along T T' times their gradient. In an MT-net a mask of zeros and ones
chooses the output units whose rows move. It is drawn for each task, with probabilities that are meta-learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.core.parameters import Parameters
from metarl.core.rules import GradientDescent
from metarl.core.validation import require
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.methods.noise import NoisyTasks, noise_of
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks

_LOGITS, _MASK = "mask_logit.", "mask."


class TransformedMLP(nn.Module):
    """Linear layers, each followed by a square matrix `transform` that starts as the identity, with ReLU between them.

    Args:
        sizes: widths, the input's first; inputs with several axes are flattened.
    """

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList(_Transformed(a, b) for a, b in pairwise(sizes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, ...) to outputs (N, last size)."""
        values = inputs.flatten(1)
        for layer in self.layers[:-1]:
            values = F.relu(layer(values))
        return self.layers[-1](values)


class _Transformed(nn.Module):
    """y = T (W x + b)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear, self.transform = nn.Linear(inputs, outputs), nn.Parameter(torch.eye(outputs))
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs) @ self.transform.T


@dataclass(frozen=True)
class MaskedDescent(GradientDescent):
    """phi' = phi - alpha * mask * gradient, with a mask of zeros and ones for the output units of each layer.

    The weight and the bias of a layer share a mask. Their first axis counts the output units, as in `torch.nn.Linear`.
    Theta holds the logits of the masks' probabilities, which start at 0; the masks themselves come from `MTNet`.
    Attributes as in `GradientDescent`.
    """

    def meta_parameters(self, parameters: Parameters) -> Parameters:
        """The module's parameters, and the logits of each adapted layer, (units,)."""
        theta = super().meta_parameters(parameters)
        units = {_layer(name): theta[name].shape[0] for name in self.adapted_names(theta) if theta[name].ndim}
        for name in self.adapted_names(theta):
            require(
                theta[name].ndim > 0 and theta[name].shape[0] == units.get(_layer(name)),
                name,
                tuple(theta[name].shape),
                "(units, ...), with as many units as the layer's other parameters have",
            )
        like = next(iter(theta.values()))
        return {**theta, **{_LOGITS + layer: like.new_zeros(count) for layer, count in units.items()}}

    def start(self, theta: Parameters) -> Parameters:
        """As in plain gradient descent; logits and masks are no parameters of the module."""
        return super().start({name: value for name, value in theta.items() if not name.startswith((_LOGITS, _MASK))})

    def update(self, theta: Parameters, phi: Parameters, gradients: Parameters, inner_step: int) -> Parameters:
        """Return phi with the rows of units that the masks in theta let move, moved by -alpha times their gradients."""
        masked = {}
        for name, gradient in gradients.items():
            mask = theta[_MASK + _layer(name)]  # (M, units)
            masked[name] = gradient * mask.view(*mask.shape, *[1] * (gradient.ndim - 2))
        return super().update(theta, phi, masked, inner_step)


@dataclass(frozen=True)
class MTNet(MAML):
    """MAML whose inner steps move a part of each layer's units, which is drawn for each task (Lee and Choi 2018).

        soft = sigmoid((logit + log(u / (1 - u))) / 1),  u uniform,   mask = 1 where soft > 1/2

    So mask is 1 with probability sigmoid(logit). Its gradient is taken to be that of `soft` (straight-through
    Gumbel-softmax with temperature 1). A task keeps its mask in all inner steps, in training and in evaluations.

    Attributes:
        rule: a `MaskedDescent`, with `adapted` naming the weights and biases.
    """

    rule: GradientDescent = MaskedDescent()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.rule, MaskedDescent), "rule", self.rule, "a MaskedDescent")

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return tasks with the uniform numbers of their masks."""
        return NoisyTasks(task_distribution, sum(len(logit) for logit in self._logits().values()), uniform=True)

    evaluation_tasks = training_tasks

    def states(self, theta: Parameters, support: Examples, inner_steps: int) -> list[Parameters]:
        """As of MAML, with the masks of each task."""
        with torch.no_grad():
            masked = self._with_masks(theta, support)
        return super().states(masked, support, inner_steps)

    def further_metrics(
        self, theta: Parameters, tasks: FewShotTasks, statistics: Parameters | None = None
    ) -> dict[str, Tensor]:
        """As of any method, and the share of all units that a task's mask lets move, `moving_units`."""
        with torch.no_grad():
            masked = self._with_masks(theta, tasks.support)
        masks = torch.cat([value for name, value in masked.items() if name.startswith(_MASK)], dim=1)
        return {**super().further_metrics(theta, tasks, statistics), "moving_units": masks.mean(dim=1)}

    def _path(self, theta: Parameters, support: Examples) -> list[Parameters]:
        return super()._path(self._with_masks(theta, support), support)

    def _logits(self) -> Parameters:
        return {name: value for name, value in self.meta_parameters().items() if name.startswith(_LOGITS)}

    def _with_masks(self, theta: Parameters, support: Examples) -> Parameters:
        """Theta and the masks (M, units) of each task, by layer."""
        logits = {name: value for name, value in theta.items() if name.startswith(_LOGITS)}
        sizes = [logit.shape[1] for logit in logits.values()]
        uniform = noise_of(support, sum(sizes), uniform=True).split(sizes, dim=1)
        masks = {
            _MASK + name.removeprefix(_LOGITS): drawn_mask(logit, numbers)
            for (name, logit), numbers in zip(logits.items(), uniform, strict=True)
        }
        return {**theta, **masks}


def drawn_mask(logit: Tensor, uniform: Tensor) -> Tensor:
    """Return masks of zeros and ones, 1 with probability sigmoid(logit); the gradient is that of the relaxed mask.

    Args:
        logit: (M, units).
        uniform: numbers in (0, 1), (M, units).
    """
    soft = torch.sigmoid(logit + uniform.logit())
    hard = (soft > 0.5).to(soft.dtype)
    return hard + (soft - soft.detach())


def mask_probabilities(theta: Parameters) -> Parameters:
    """Return the probability that each unit moves, (units,), by layer, from an MT-net's theta."""
    return {name.removeprefix(_LOGITS): v.sigmoid() for name, v in theta.items() if name.startswith(_LOGITS)}


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
