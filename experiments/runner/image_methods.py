"""Methods on images beyond gradient descent that are differentiated through, as variants of `--method`."""

from dataclasses import dataclass

from torch import nn

from metarl.core.rules import GradientDescent
from metarl.core.settings import check_settings
from metarl.experiments.runner.few_shot import ADAPTED, BuildsMethod, MakeModule, inner_loop
from metarl.experiments.runner.settings import same_as
from metarl.few_shot.criteria import Criterion
from metarl.few_shot.methods.implicit import IMAML
from metarl.few_shot.methods.meta_lstm import GateLSTM, MetaLSTM
from metarl.few_shot.methods.proto_maml import ProtoMAML


@dataclass(frozen=True)
class ImplicitSteps(GradientDescent, BuildsMethod):
    """iMAML."""

    inner_steps: int = same_as(GradientDescent, "inner_steps", default=16)
    regularisation: float = same_as(IMAML, "regularisation")
    cg_iterations: int = same_as(IMAML, "cg_iterations")
    damping: float = same_as(IMAML, "damping")

    def build(self, criterion: Criterion, module: nn.Module, make: MakeModule) -> IMAML:
        """As of any method that is built so; the shifts of batch norms are adapted, too."""
        return IMAML(
            module, criterion, inner_loop(self, ("*",)), 0, self.regularisation, self.cg_iterations, self.damping
        )


@dataclass(frozen=True)
class LearnedUpdates(BuildsMethod):
    """The LSTM meta-learner."""

    inner_steps: int = same_as(MetaLSTM, "total_steps")

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, criterion: Criterion, module: nn.Module, make: MakeModule) -> MetaLSTM:
        """As of any method that is built so."""
        return MetaLSTM(module, criterion, gates=GateLSTM(), total_steps=self.inner_steps)


@dataclass(frozen=True)
class PrototypeStart(GradientDescent, BuildsMethod):
    """Proto-MAML, by default with first-order inner steps."""

    second_order: bool = False
    training_ways: int | None = same_as(ProtoMAML, "training_ways")

    def build(self, criterion: Criterion, module: nn.Module, make: MakeModule) -> ProtoMAML:
        """As of any method that is built so; batch norms' shifts are shared by the tasks."""
        return ProtoMAML(module, criterion, inner_loop(self, ADAPTED), training_ways=self.training_ways)


IMAGE_METHODS: dict[str, type] = {"proto-maml": PrototypeStart, "imaml": ImplicitSteps, "meta-lstm": LearnedUpdates}
