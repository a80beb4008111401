"""Outer-loop optimisers: one step on the meta-parameters, given the meta-objective of an iteration."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from metarl.objective import MetaObjective
from metarl.trpo import TrustRegion, TrustRegionOutcome


@dataclass(frozen=True)
class TRPO:
    """Trust-region step on the post-adaptation surrogate (Schulman et al. 2015, as Finn et al. 2017 use it).

    Attributes:
        max_kl: bound on the mean KL(old || new) of the adapted policies.
        product_fraction: share of the samples used for Hessian-vector products alone; `MetaObjective.kl_products`
            says what that does to them.
    """

    max_kl: float = 0.01
    product_fraction: float = 0.2

    def update(
        self, objective: MetaObjective, vector: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, TrustRegionOutcome]:
        """Return the new meta-parameters and what happened; a rejected step returns the old ones."""
        loss, gradient = objective.loss_and_gradient(vector)
        product = objective.kl_products(vector, self.product_fraction, rng)
        return TrustRegion(bound=self.max_kl).step(vector, loss, gradient, product, objective.evaluate)
