"""Proto-MAML (Triantafillou et al. 2020): MAML whose last layer starts from the prototypes of a task's classes."""

from dataclasses import dataclass

import torch

from metarl.core.parameters import Parameters
from metarl.core.settings import setting
from metarl.core.validation import require
from metarl.few_shot.methods.centroids import class_means
from metarl.few_shot.methods.embedding import one_hot
from metarl.few_shot.methods.gradient import MAML, call_features
from metarl.few_shot.tasks import Examples, FewShotDistribution, training_episodes


@dataclass(frozen=True)
class ProtoMAML(MAML):
    """MAML without a learned last layer: on every task it starts as a prototypical network.

        c_k = mean of the features of class k's support examples,    W_k = 2 c_k,    b_k = -|c_k|^2

    so its first outputs are -|z - c_k|^2 but for a term that all classes share, and the gradient of theta runs through
    the prototypes. Inner steps then change W and b as any other parameter. A task may have any number of classes.

    Attributes:
        module: with a linear last layer `head`, and a method `features` that gives what this layer sees.
        rule: of the inner loop; without second order the gradient still runs through the prototypes.
    """

    training_ways: int | None = setting(None, "classes of a training task; none for those of a test task", at_least=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = hasattr(self.module, "features") and isinstance(getattr(self.module, "head", None), torch.nn.Linear)
        require(fits, "module", type(self.module).__name__, "one with a linear layer `head` and a method `features`")

    def meta_parameters(self) -> Parameters:
        """Return the parameters of the module but for its last layer, and what the rule learns beside them."""
        return {name: value for name, value in super().meta_parameters().items() if not name.startswith("head.")}

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return episodes with as many classes as training wants."""
        return training_episodes(task_distribution, self.training_ways)

    def states(self, theta: Parameters, support: Examples, inner_steps: int) -> list[Parameters]:
        """Return phi_0 ... phi_S; phi_0 is the prototypical network."""
        with torch.no_grad():
            start = self._with_prototypes(theta, support)
        return super().states(start, support, inner_steps)

    def _path(self, theta: Parameters, support: Examples) -> list[Parameters]:
        return super()._path(self._with_prototypes(theta, support), support)

    def _with_prototypes(self, theta: Parameters, support: Examples) -> Parameters:
        features = call_features(self.module, self.rule.start(theta), support.inputs)  # (M, N, F)
        prototypes = class_means(features, one_hot(support.targets))
        head = {"head.weight": 2 * prototypes, "head.bias": -prototypes.square().sum(dim=2)}
        # as views, so that inner gradients in them do not run through the prototypes as well
        return {**{name: value.view_as(value) for name, value in theta.items()}, **head}
