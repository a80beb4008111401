"""The curvature of the KL of adapted policies in the meta-parameters, known by its products with vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from metarl.core.jacobian import Jacobian
from metarl.core.parameters import Parameters, expand_over_tasks
from metarl.rl.action_distributions import ActionDistribution


@dataclass(frozen=True)
class Curvature:
    """J' F J of M tasks, summed over the query data that count.

        F = sum_n w_n (d output_n / d phi)' Fisher(output_n) (d output_n / d phi)

    Attributes:
        adaptation: J, from theta to the adapted parameters phi.
        network: from phi to distribution parameters.
        action_distribution: the family of these, which knows its Fisher matrix.
        outputs: distribution parameters on each query data, (M, N, P).
        weights: w_n of each query data, (M, N, 1).
    """

    adaptation: Jacobian
    network: Jacobian
    action_distribution: ActionDistribution
    outputs: Sequence[Tensor]
    weights: Sequence[Tensor]

    def product(self, direction: Parameters) -> tuple[Tensor, ...]:
        """Return J' F J v of each task, (M, ...) tensors shaped as theta, for a direction v in theta."""
        tangents = expand_over_tasks(direction, len(self.outputs[0]))
        moved = self.network.product(self.adaptation.product(list(tangents.values())))
        metrics = [
            weight * self.action_distribution.fisher_product(output, change)
            for weight, output, change in zip(self.weights, self.outputs, moved, strict=True)
        ]
        return self.adaptation.transposed_product(self.network.transposed_product(metrics))
