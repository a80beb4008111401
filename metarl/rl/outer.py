"""Outer-loop optimisers: one update of the meta-parameters, given the meta-objective of an iteration.

They keep nothing: what one update hands to the next is the state that it returns, and `start` gives the first one.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from metarl.core.trust_region import TrustRegion
from metarl.core.validation import require, require_positive, require_whole
from metarl.rl.estimators import clipped_surrogate
from metarl.rl.objective import MetaObjective

State = dict[str, Tensor]


@dataclass(frozen=True)
class UpdateOutcome:
    """What an update did.

    Attributes:
        status: `accepted` where the meta-parameters changed; TRPO may also say `rejected` or `stationary`.
        loss_before, loss_after: the surrogate loss of the adapted policies.
        kl: mean KL(old || new) of the adapted policies.
        gradient_norm: Euclidean norm of the meta-gradient, or of what stands for it.
        details: figures of the optimiser's own, by name.
    """

    status: str
    loss_before: float
    loss_after: float
    kl: float
    gradient_norm: float
    details: dict[str, float] = field(default_factory=dict)


class OuterOptimiser(Protocol):
    """What the learner needs of an outer optimiser."""

    def start(self, vector: Tensor, steps: int) -> State:
        """The state before the first update, for theta (n,) and S inner steps; later ones have its names and shapes."""
        ...

    def update(
        self, objective: MetaObjective, vector: Tensor, rng: np.random.Generator, state: State
    ) -> tuple[Tensor, State, UpdateOutcome]:
        """Update the meta-parameters.

        Args:
            objective: of the iteration's data.
            vector: theta, (n,).
            rng: for whatever is drawn.
            state: that the update before returned, or `start`.

        Returns:
            the new theta, the new state, and what happened.
        """
        ...


@dataclass(frozen=True)
class TRPO:
    """Trust-region step on the post-adaptation surrogate (Schulman et al. 2015, as Finn et al. 2017 use it).

    Attributes:
        max_kl: bound on the mean KL(old || new) of the adapted policies.
        product_fraction: share of the samples used for Hessian-vector products alone; `MetaObjective.kl_products`
            says what that does to them.
    """

    max_kl: float = 0.01
    product_fraction: float = 0.1

    def __post_init__(self) -> None:
        require_positive("max_kl", self.max_kl)
        require(0 < self.product_fraction <= 1, "product_fraction", self.product_fraction, "more than 0, at most 1")

    def start(self, vector: Tensor, steps: int) -> State:
        """Nothing."""
        return {}

    def update(
        self, objective: MetaObjective, vector: Tensor, rng: np.random.Generator, state: State
    ) -> tuple[Tensor, State, UpdateOutcome]:
        """As in `OuterOptimiser`; a rejected step returns the old meta-parameters."""
        loss, gradient = objective.loss_and_gradient(vector)
        product = objective.kl_products(vector, self.product_fraction, rng)
        vector, step = TrustRegion(bound=self.max_kl).step(vector, loss, gradient, product, objective.evaluate)
        details = {"line_search_steps": float(step.line_search_steps)}
        outcome = UpdateOutcome(
            step.status, step.loss_before, step.loss_after, step.constraint, step.gradient_norm, details
        )
        return vector, {}, outcome


@dataclass(frozen=True)
class Adam:
    """One Adam step (Kingma, Ba 2015) on the surrogate, whose gradient is the policy gradient at the sampling point.

    Attributes:
        step_size: of Adam.
    """

    step_size: float = 1e-3

    def __post_init__(self) -> None:
        require_positive("step_size", self.step_size)

    def start(self, vector: Tensor, steps: int) -> State:
        """Adam's moments."""
        return adam_state(vector)

    def update(
        self, objective: MetaObjective, vector: Tensor, rng: np.random.Generator, state: State
    ) -> tuple[Tensor, State, UpdateOutcome]:
        """As in `OuterOptimiser`."""
        loss, gradient = objective.loss_and_gradient(vector)
        vector, state = adam_step(vector, gradient, state, self.step_size)
        after, kl = objective.evaluate(vector)
        return vector, state, _accepted(loss, after, kl, gradient)


@dataclass(frozen=True)
class PPO:
    """The outer objective of ProMP (Rothfuss et al. 2019, section 6), which is PPO's with penalties on the inner steps.

        1/M sum_m clipped_surrogate(phi_m; query_m) + sum_s eta_s KL_s,

    minimised by several Adam steps on the same data; KL_s, of the policies before inner step s, are those of
    `MetaObjective.inner_kls`. After each update eta_s halves where KL_s is below target / 1.5, and doubles where it is
    above 1.5 target. Deviation: ProMP's code averages the penalties over inner steps; this sums them. The defaults are
    those of its code.

    Attributes:
        step_size: of Adam.
        epochs: Adam steps per update.
        clip: bound on the change of a ratio that still pays.
        inner_kl: target of every KL_s, in nats.
        penalty: eta_s at the start.
    """

    step_size: float = 1e-3
    epochs: int = 5
    clip: float = 0.2
    inner_kl: float = 0.01
    penalty: float = 0.01

    def __post_init__(self) -> None:
        require_whole("epochs", self.epochs)
        require_positive("step_size", self.step_size)
        require_positive("clip", self.clip)
        require_positive("inner_kl", self.inner_kl)
        require(0 <= self.penalty < np.inf, "penalty", self.penalty, "at least 0")

    def start(self, vector: Tensor, steps: int) -> State:
        """Adam's moments, and the penalties eta_s (S,)."""
        return adam_state(vector) | {"penalties": vector.new_full((steps,), self.penalty)}

    def update(
        self, objective: MetaObjective, vector: Tensor, rng: np.random.Generator, state: State
    ) -> tuple[Tensor, State, UpdateOutcome]:
        """As in `OuterOptimiser`."""
        penalties, moments = state["penalties"], {name: state[name] for name in ("count", "mean", "square")}
        loss = partial(clipped_surrogate, clip=self.clip)
        first = None
        for _ in range(self.epochs):
            value, gradient = objective.loss_and_gradient(vector, loss, penalties)
            first = first or (value, gradient)
            vector, moments = adam_step(vector, gradient, moments, self.step_size)
        kls = objective.inner_kls(vector)
        adapted = torch.where(kls < self.inner_kl / 1.5, penalties / 2, penalties)
        adapted = torch.where(kls > self.inner_kl * 1.5, penalties * 2, adapted)
        details = {f"inner_kl/step_{s}": kl for s, kl in enumerate(kls.tolist())}
        details |= {f"inner_kl_penalty/step_{s}": eta for s, eta in enumerate(penalties.tolist())}
        assert first is not None, "epochs is at least 1"
        after, kl = objective.evaluate(vector)
        return vector, {**moments, "penalties": adapted}, _accepted(first[0], after, kl, first[1], details)


@dataclass(frozen=True)
class Reptile:
    """theta' = theta + epsilon * mean_m (phi_m - theta) (Nichol et al. 2018); needs no meta-gradient and no query data.

    It moves what the inner loop moves, and nothing else: learned step sizes, or a part of the network that is shared,
    would stay as they are.

    Attributes:
        step_size: epsilon.
    """

    step_size: float = 0.1

    def __post_init__(self) -> None:
        require_positive("step_size", self.step_size)

    def start(self, vector: Tensor, steps: int) -> State:
        """Nothing."""
        return {}

    def update(
        self, objective: MetaObjective, vector: Tensor, rng: np.random.Generator, state: State
    ) -> tuple[Tensor, State, UpdateOutcome]:
        """As in `OuterOptimiser`."""
        before, _ = objective.evaluate(vector)
        displacement = objective.displacement(vector)
        vector = vector + self.step_size * displacement
        after, kl = objective.evaluate(vector)
        return vector, {}, _accepted(before, after, kl, displacement)


def adam_state(vector: Tensor) -> State:
    """Moments of Adam before its first step, and the number of steps done."""
    return {
        "count": torch.zeros((), dtype=torch.float64),
        "mean": torch.zeros_like(vector),
        "square": torch.zeros_like(vector),
    }


def adam_step(
    vector: Tensor,
    gradient: Tensor,
    state: State,
    step_size: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> tuple[Tensor, State]:
    """x - step_size * m^ / (sqrt(v^) + epsilon), with bias-corrected moving means m^ and v^ (Kingma, Ba 2015).

    Args:
        vector, gradient: (n,).
        state: of `adam_state`, or of the step before.
        step_size, betas, epsilon: of the paper.

    Returns:
        the new vector and the new state.
    """
    count = state["count"] + 1
    mean = betas[0] * state["mean"] + (1 - betas[0]) * gradient
    square = betas[1] * state["square"] + (1 - betas[1]) * gradient.square()
    corrected = [moment / (1 - beta ** count.item()) for moment, beta in zip((mean, square), betas, strict=True)]
    moved = vector - step_size * corrected[0] / (corrected[1].sqrt() + epsilon)
    return moved, {"count": count, "mean": mean, "square": square}


def _accepted(
    before: Tensor, after: Tensor, kl: Tensor, gradient: Tensor, details: dict[str, float] | None = None
) -> UpdateOutcome:
    return UpdateOutcome("accepted", before.item(), after.item(), kl.item(), gradient.norm().item(), details or {})
