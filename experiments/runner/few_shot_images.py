"""What the few-shot experiments on images share: settings, episodes, and the baselines that meta-learn nothing."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import metarl
from metarl.core.distributed import current
from metarl.core.parameters import call_per_task, expand_over_tasks
from metarl.experiments.runner.configuration import SettingError, setting
from metarl.experiments.runner.few_shot import (
    LEARNERS,
    FewShotEvaluation,
    FewShotExperiment,
    FewShotSettings,
    build_few_shot,
    over_blocks,
)
from metarl.experiments.runner.settings import choose_device
from metarl.few_shot.tasks import FewShotTasks


@dataclass(frozen=True)
class ImageSettings(FewShotSettings):
    """Settings of a few-shot run on images."""

    learner: str = setting(
        "maml",
        "how it meta-learns; classifier learns all training classes at once, for fine-tuning and nearest neighbours",
        choices=(*LEARNERS, "classifier"),
        source="paper",
    )
    ways: int = setting(5, "N, classes of a task", at_least=2, source="paper")


@dataclass(frozen=True)
class ImageExperiment(FewShotExperiment):
    """A few-shot experiment on images, with the baselines of a classifier of all training classes.

    Its last layer is replaced by one of zeros, and all of it is fine-tuned on the support images of a task; or its
    features alone find the nearest support image.

    Attributes:
        network: makes the network, given settings and the number of classes.
    """

    network: Any = None

    def judged(self, settings: Any, learner: metarl.FewShotLearner) -> metarl.FewShotLearner:
        """The learner on the tasks of evaluations; a classifier with a last layer for them."""
        if settings.learner != "classifier":
            return super().judged(settings, learner)
        judged = super().judged(settings, replace(learner, module=self.network(settings, settings.ways)))
        trained = {name: value for name, value in learner.theta.items() if not name.startswith("head.")}
        judged.theta = {name: trained.get(name, torch.zeros_like(value)) for name, value in judged.theta.items()}
        return judged

    def evaluate(self, settings: Any, learner: metarl.FewShotLearner, split: str) -> FewShotEvaluation:
        """As of any experiment; of a classifier also the score of the nearest neighbour."""
        evaluation = super().evaluate(settings, learner, split)
        if settings.learner != "classifier":
            return evaluation
        judged = evaluation.learner
        [nearest] = over_blocks(settings, judged, split, lambda block: _nearest_score(judged, block), 1)
        return replace(evaluation, nearest_neighbour=nearest)


def build_images(settings: Any, images: dict[str, Tensor], network: Any) -> metarl.FewShotLearner:
    """The learner on images per split; a classifier sees as many in an iteration as there are query images else."""
    device = choose_device(settings.device)
    images = {split: tensor.to(device) for split, tensor in images.items()}
    judged, shots = {split: images[split] for split in ("validation", "test")}, settings.judged_shots
    _episodes(judged, settings.ways, shots, shots)  # what evaluations need is refused now, not after training
    if settings.learner != "classifier":
        episodes = _episodes(images, settings.ways, settings.shots, settings.training_queries)
        return build_few_shot(settings, episodes, lambda: network(settings, settings.ways), metarl.CLASSIFICATION)
    if (size := current().size) > 1:
        raise SettingError(f"--learner = classifier on {size} processes; allowed: one process")
    batches = metarl.ImageBatches(images, settings.tasks * settings.ways * settings.training_queries)
    alone, classes = replace(settings, tasks=1, inner_steps=0), len(images["train"])
    return build_few_shot(alone, batches, lambda: network(settings, classes), metarl.CLASSIFICATION)


def episodes(settings: Any, learner: Any, shots: int) -> metarl.ImageEpisodes:
    """Tasks of evaluations, with as many query as support images, as in the paper."""
    return _episodes(learner.distribution.images, settings.ways, shots, shots)


def _episodes(images: dict[str, Tensor], ways: int, shots: int, queries: int) -> metarl.ImageEpisodes:
    try:
        return metarl.ImageEpisodes(images, ways, shots, queries)
    except ValueError as error:
        raise SettingError(f"--ways = {ways}, --shots = {shots}: {error}") from error


@torch.no_grad()
def _nearest_score(learner: metarl.FewShotLearner, tasks: FewShotTasks) -> Tensor:
    """Share of query images whose nearest support image, in features, is of their class, (M,)."""
    network = _Features(learner.module)
    phi = {f"network.{name}": value for name, value in expand_over_tasks(learner.theta, len(tasks)).items()}
    support, query = (call_per_task(network, phi, of.inputs) for of in (tasks.support, tasks.query))
    found = metarl.nearest_neighbour(support, tasks.support.targets, query)
    return (found == tasks.query.targets).double().mean(dim=1)


class _Features(nn.Module):
    """A network without its last layer."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(images)
