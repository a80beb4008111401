"""R2-D2 (Bertinetto et al. 2019): a linear classifier per task, by ridge regression in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.core.parameters import Parameters
from metarl.core.settings import setting
from metarl.few_shot.method import State
from metarl.few_shot.methods.embedding import EmbeddingMethod


@dataclass(frozen=True)
class RidgeRegression(EmbeddingMethod):
    """Ridge regression of one-hot classes on features, differentiated through.

        W = Z' (Z Z' + ridge I)^-1 Y = (Z' Z + ridge I)^-1 Z' Y,    log P = log softmax(a [z, 1] W)

    with Z the support features with a column of ones, and Y the one-hot classes, both over the square root of the
    number N of support images. The smaller of the two systems is solved. The factor a is learned. The paper also adds a
    learned number to all logits, which changes no probability and is left out.

    Attributes:
        scale: the factor a at first.
    """

    ridge: float = setting(50.0, "strength of the regularisation", more_than=0, source="authors' settings, Omniglot")
    scale: float = setting(10.0, "factor of the regression's outputs before training", source="authors' settings")

    def meta_parameters(self) -> Parameters:
        """Return the module's parameters, running averages, and the factor a."""
        like = next(self.module.parameters())
        return {**super().meta_parameters(), "ridge.scale": like.new_tensor(self.scale).detach()}

    def learn(self, theta: Parameters, features: Tensor, members: Tensor) -> State:
        """Return the weights W (M, F + 1, ways)."""
        return {"weights": ridge_weights(_with_ones(features), members.to(features.dtype), self.ridge)}

    def compare(self, theta: Parameters, state: State, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, ways)."""
        return (theta["ridge.scale"] * (_with_ones(features) @ state["weights"])).log_softmax(dim=2)


def ridge_weights(features: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Return argmin_W |Z W - Y|^2 / N + ridge |W|^2 of each task, (M, F, K).

    Args:
        features: Z (M, N, F).
        targets: Y (M, N, K).
        ridge: more than 0, so that there is one solution.
    """
    count, size = features.shape[1:]
    z, y = features / count**0.5, targets / count**0.5
    if count <= size:
        return z.mT @ torch.linalg.solve(z @ z.mT + ridge * torch.eye(count).to(z), y)
    return torch.linalg.solve(z.mT @ z + ridge * torch.eye(size).to(z), z.mT @ y)


def _with_ones(features: Tensor) -> Tensor:
    """Features (M, N, ...) as vectors, with a last column of ones, (M, N, F + 1)."""
    flat = features.flatten(2)
    return torch.cat([flat, flat.new_ones(*flat.shape[:2], 1)], dim=2)
