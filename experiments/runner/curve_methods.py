"""Few-shot methods of regression beyond gradient descent, as variants of `--method`."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from metarl.core.rules import GradientDescent
from metarl.core.settings import setting
from metarl.experiments.runner.few_shot import ADAPTED, BuildsMethod, MakeModule, inner_loop
from metarl.experiments.runner.settings import same_as
from metarl.few_shot.criteria import Criterion
from metarl.few_shot.methods.gradient import MAML
from metarl.few_shot.methods.laplace import Llama
from metarl.few_shot.methods.particles import BMAML, EMAML
from metarl.few_shot.methods.platipus import Platipus
from metarl.few_shot.methods.subspaces import MaskedDescent, MTNet


@dataclass(frozen=True)
class CurveMethod(GradientDescent, BuildsMethod):
    """What these methods have in common: inner steps by gradient descent."""

    transformed: ClassVar[bool] = False  # whether the network's layers have a matrix T
    needs_noise: ClassVar[bool] = False  # whether the criterion must know the noise of targets

    @property
    def rule(self) -> GradientDescent:
        """The inner loop, which leaves the matrices T of T-nets as they are."""
        return inner_loop(self, ADAPTED)


@dataclass(frozen=True)
class TransformedLayers(CurveMethod):
    """T-nets."""

    transformed: ClassVar[bool] = True

    def build(self, criterion: Criterion, module: nn.Module, make: MakeModule) -> MAML:
        """As of any of them."""
        return MAML(module, criterion, self.rule)


@dataclass(frozen=True)
class MaskedLayers(TransformedLayers):
    """MT-nets."""

    def build(self, criterion: Criterion, module: nn.Module, make: MakeModule) -> MAML:
        """As of any of them."""
        return MTNet(module, criterion, MaskedDescent(**vars(self.rule)))


@dataclass(frozen=True)
class Members(CurveMethod):
    """EMAML."""

    particles: int = setting(10, "networks of a task, P", at_least=1, source="authors' setting")

    def build(self, criterion: Criterion, module: nn.Module, make: MakeModule) -> MAML:
        """As of any of them."""
        members = nn.ModuleList([module, *(make() for _ in range(self.particles - 1))])
        return EMAML(module, criterion, self.rule, members=members)


@dataclass(frozen=True)
class Particles(Members):
    """Bayesian MAML."""

    leader_steps: int = same_as(BMAML, "leader_steps")

    def build(self, criterion: Criterion, module: nn.Module, make: MakeModule) -> MAML:
        """As of any of them."""
        members = nn.ModuleList([module, *(make() for _ in range(self.particles - 1))])
        return BMAML(module, criterion, self.rule, members=members, leader_steps=self.leader_steps)


@dataclass(frozen=True)
class RandomStart(CurveMethod):
    """PLATIPUS."""

    samples: int = same_as(Platipus, "samples", flag="predictive_samples")
    kl_weight: float = same_as(Platipus, "kl_weight")
    initial_std: float = same_as(Platipus, "initial_std", flag="initial_weight_std")

    def build(self, criterion: Criterion, module: nn.Module, make: MakeModule) -> MAML:
        """As of any of them."""
        own: dict[str, Any] = {"samples": self.samples, "kl_weight": self.kl_weight, "initial_std": self.initial_std}
        return Platipus(module, criterion, self.rule, **own)


@dataclass(frozen=True)
class LaplacePosterior(CurveMethod):
    """LLAMA."""

    needs_noise: ClassVar[bool] = True

    samples: int = same_as(Llama, "samples", flag="predictive_samples")
    determinant_weight: float = same_as(Llama, "determinant_weight")

    def build(self, criterion: Criterion, module: nn.Module, make: MakeModule) -> MAML:
        """As of any of them."""
        own: dict[str, Any] = {"samples": self.samples, "determinant_weight": self.determinant_weight}
        return Llama(module, criterion, self.rule, **own)


CURVE_METHODS: dict[str, type[CurveMethod]] = {
    "t-net": TransformedLayers,
    "mt-net": MaskedLayers,
    "emaml": Members,
    "bmaml": Particles,
    "platipus": RandomStart,
    "llama": LaplacePosterior,
}


def with_noise(criterion: Criterion, std: float | None) -> Criterion:
    """Return a criterion that knows the noise of targets, or the same one where there is nothing to know."""
    return criterion if std is None else replace(criterion, noise_std=std)
