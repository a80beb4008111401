"""Outer-loop optimisers: one update of the meta-parameters, given the meta-objective of an iteration.

They keep nothing: what one update hands to the next is the state that it returns, and `start` gives the first one.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from metarl.core.adam import AdamState, adam_step, initial_adam_state
from metarl.core.settings import check_settings, setting
from metarl.core.trust_region import TrustRegion
from metarl.rl.estimators import clipped_surrogate
from metarl.rl.objective import MetaObjective

State = dict[str, Any]  # of tensors, or of such dicts


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
    """What a learner needs of an outer optimiser. It keeps nothing; its state is handed from update to update."""

    def start(self, vector: Tensor, inner_steps: int) -> State:
        """Return the state before the first update, for theta (n,) and S inner steps.

        Later states have the same names and shapes.
        """
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
    """Trust-region step on the post-adaptation surrogate (Schulman et al. 2015, as Finn et al. 2017 use it)."""

    max_kl: float = setting(
        0.01, "bound on the mean KL of a meta-update", unit="nats", more_than=0, source="paper's code"
    )
    hvp_sample_fraction: float = setting(
        0.1,
        "share of the samples in Hessian-vector products, see `MetaObjective.kl_products`",
        more_than=0,
        at_most=1,
        source="ours, for speed; paper 1",
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def start(self, vector: Tensor, inner_steps: int) -> State:
        """TRPO keeps no optimiser state; returns an empty dict."""
        return {}

    def update(
        self, objective: MetaObjective, vector: Tensor, rng: np.random.Generator, state: State
    ) -> tuple[Tensor, State, UpdateOutcome]:
        """Take one trust-region step; theta stays as it was if it is rejected; see `OuterOptimiser.update`."""
        loss, gradient = objective.loss_and_gradient(vector)
        product = objective.kl_products(vector, self.hvp_sample_fraction, rng)
        vector, step = TrustRegion(bound=self.max_kl).step(vector, loss, gradient, product, objective.evaluate)
        details = {"line_search_steps": float(step.line_search_steps)}
        outcome = UpdateOutcome(
            step.status, step.loss_before, step.loss_after, step.constraint, step.gradient_norm, details
        )
        return vector, {}, outcome


@dataclass(frozen=True)
class Adam:
    """One Adam step (Kingma and Ba 2015) on the surrogate; its gradient there is the policy gradient."""

    step_size: float = setting(0.001, "step size of Adam", more_than=0, source="ProMP's code", flag="outer_step_size")

    def __post_init__(self) -> None:
        check_settings(self)

    def start(self, vector: Tensor, inner_steps: int) -> State:
        """Return Adam's moments, which are 0 before the first update."""
        return {"adam": initial_adam_state({"theta": vector})}

    def update(
        self, objective: MetaObjective, vector: Tensor, rng: np.random.Generator, state: State
    ) -> tuple[Tensor, State, UpdateOutcome]:
        """Take one Adam step; see `OuterOptimiser.update`."""
        loss, gradient = objective.loss_and_gradient(vector)
        vector, adam = _adam_step(vector, gradient, state["adam"], self.step_size)
        after, kl = objective.evaluate(vector)
        return vector, {"adam": adam}, _accepted(loss, after, kl, gradient)


@dataclass(frozen=True)
class PPO:
    """The outer objective of ProMP (Rothfuss et al. 2019, section 6), which is PPO's with penalties on the inner steps.

        1/M sum_m clipped_surrogate(phi_m; query_m) + sum_s eta_s KL_s,

    minimised by several Adam steps on the same data; KL_s, of the policies before inner step s, are those of
    `MetaObjective.inner_kls`. After each update eta_s halves where KL_s is below target / 1.5, and doubles where it is
    above 1.5 target. Deviation: ProMP's code averages the penalties over inner steps; this sums them. The defaults are
    those of its code.
    """

    step_size: float = setting(0.001, "step size of Adam", more_than=0, source="ProMP's code", flag="outer_step_size")
    epochs: int = setting(5, "Adam steps on the same data", at_least=1, source="ProMP's code")
    clip: float = setting(
        0.2,
        "change of a probability ratio beyond which it gains nothing",
        more_than=0,
        at_most=1,
        source="ProMP's code",
    )
    inner_kl: float = setting(
        0.01, "target of the KL before each inner step, KL_s", unit="nats", more_than=0, source="ProMP's code"
    )
    inner_kl_penalty: float = setting(
        0.01, "weight of these KLs at the start, eta_s", at_least=0, source="ProMP's code"
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def start(self, vector: Tensor, inner_steps: int) -> State:
        """Return Adam's moments, and the penalties eta_s, (S,)."""
        penalties = vector.new_full((inner_steps,), self.inner_kl_penalty)
        return {"adam": initial_adam_state({"theta": vector}), "penalties": penalties}

    def update(
        self, objective: MetaObjective, vector: Tensor, rng: np.random.Generator, state: State
    ) -> tuple[Tensor, State, UpdateOutcome]:
        """Take `epochs` Adam steps on the same data, then adjust the penalties; see `OuterOptimiser.update`."""
        penalties, adam = state["penalties"], state["adam"]
        loss = partial(clipped_surrogate, clip=self.clip)
        first = None
        for _ in range(self.epochs):
            value, gradient = objective.loss_and_gradient(vector, loss, penalties)
            first = first or (value, gradient)
            vector, adam = _adam_step(vector, gradient, adam, self.step_size)
        kls = objective.inner_kls(vector)
        adapted = torch.where(kls < self.inner_kl / 1.5, penalties / 2, penalties)
        adapted = torch.where(kls > self.inner_kl * 1.5, penalties * 2, adapted)
        details = {f"inner_kl/step_{s}": kl for s, kl in enumerate(kls.tolist())}
        details |= {f"inner_kl_penalty/step_{s}": eta for s, eta in enumerate(penalties.tolist())}
        assert first is not None, "epochs is at least 1"
        after, kl = objective.evaluate(vector)
        return vector, {"adam": adam, "penalties": adapted}, _accepted(first[0], after, kl, first[1], details)


@dataclass(frozen=True)
class Reptile:
    """theta' = theta + epsilon * mean_m (phi_m - theta) (Nichol et al. 2018); needs no meta-gradient and no query data.

    It moves what the inner loop moves, and nothing else: learned step sizes, or a part of the network that is shared,
    would stay as they are.
    """

    step_size: float = setting(
        0.1,
        "share of the way to the adapted parameters, epsilon",
        more_than=0,
        at_most=1,
        flag="reptile_step_size",
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def start(self, vector: Tensor, inner_steps: int) -> State:
        """Reptile keeps no optimiser state; returns an empty dict."""
        return {}

    def update(
        self, objective: MetaObjective, vector: Tensor, rng: np.random.Generator, state: State
    ) -> tuple[Tensor, State, UpdateOutcome]:
        """Move theta towards the mean adapted parameters; see `OuterOptimiser.update`."""
        before, _ = objective.evaluate(vector)
        gradient = objective.reptile_gradient(vector)
        vector = vector - self.step_size * gradient
        after, kl = objective.evaluate(vector)
        return vector, {}, _accepted(before, after, kl, gradient)


def _adam_step(vector: Tensor, gradient: Tensor, state: AdamState, step_size: float) -> tuple[Tensor, AdamState]:
    moved, state = adam_step({"theta": vector}, {"theta": gradient}, state, step_size)
    return moved["theta"], state


def _accepted(
    before: Tensor, after: Tensor, kl: Tensor, gradient: Tensor, details: dict[str, float] | None = None
) -> UpdateOutcome:
    return UpdateOutcome("accepted", before.item(), after.item(), kl.item(), gradient.norm().item(), details or {})
