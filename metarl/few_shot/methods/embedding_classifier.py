"""Methods that embed, whose embedding is trained as part of a classifier of all training classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from metarl.core.parameters import Parameters
from metarl.core.settings import setting
from metarl.few_shot.method import State
from metarl.few_shot.methods.embedding import EmbeddingMethod
from metarl.few_shot.tasks import Examples, FewShotDistribution, FewShotTasks, ImageBatches


@dataclass(frozen=True)
class EmbeddingClassifier(EmbeddingMethod):
    """Base class of methods that learn to tell all training classes apart, from batches of images.

    Without support images the classes are those of training; `compare` then gets an empty state.

    Attributes:
        head: the classifier's last layer, from features to a logit for each training class.
    """

    head: nn.Module = field(kw_only=True)
    batch_size: int = setting(128, "images in a training batch", at_least=1)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The embedding, and the classifier's last layer."""
        return {"": self.module, "classifier.": self.head}

    def training_tasks(self, task_distribution: FewShotDistribution) -> FewShotDistribution:
        """Return batches of images of all training classes."""
        return ImageBatches.of(task_distribution, self.batch_size)

    def adapt(self, theta: Parameters, support: Examples) -> State:
        """Return what is learned from the support examples; an empty state where there are none, as in training."""
        return super().adapt(theta, support) if support.targets.shape[1] else {}

    def training_pass(
        self, theta: Parameters, tasks: FewShotTasks, schedule: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Parameters]:
        """Return the classifier's loss and metric of each batch, (M,), and the statistics to be averaged."""
        features, seen = self.apply("", theta, (tasks.query.inputs,), {})
        loss, metric = self.criterion(self.classified(theta, features), tasks.query.targets)
        return loss, metric, {**seen, **self.averaged(features)}

    def classified(self, theta: Parameters, features: Tensor) -> Tensor:
        """Return log-probabilities (M, Q, classes) of all training classes."""
        return self.apply("classifier.", theta, (features.flatten(2),), {})[0].log_softmax(dim=2)

    def averaged(self, features: Tensor) -> Parameters:
        """Return what of a batch's features (M, Q, ...) is averaged over training, by name; by default nothing."""
        return {}
