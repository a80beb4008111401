"""Few-shot learning on images: settings, episodes, and the baseline of a classifier of all training classes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from metarl.core.distributed import current
from metarl.core.rules import GradientDescent
from metarl.core.settings import SettingError, setting
from metarl.experiments.runner.embedding_methods import EMBEDDING_METHODS, Convolved, Embedded, embedding
from metarl.experiments.runner.few_shot import (
    Episodes,
    FewShotExperiment,
    FewShotSettings,
    FineTuned,
    methods,
)
from metarl.experiments.runner.image_evaluation import ImageEvaluation, accuracy_curves, draw_curves, draw_predictions
from metarl.experiments.runner.image_methods import IMAGE_METHODS, ImplicitSteps, PrototypeStart
from metarl.experiments.runner.memory_methods import MEMORY_METHODS, FastWeights, Recurrent
from metarl.experiments.runner.settings import part
from metarl.few_shot.images.image_cache import default_cache
from metarl.few_shot.images.image_classes import ImagesBySplit
from metarl.few_shot.images.pictures import PictureForm
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.method import Method
from metarl.few_shot.methods.gradient import Classifier
from metarl.few_shot.methods.sequences import ShuffledEpisodes
from metarl.few_shot.networks import ConvNet
from metarl.few_shot.tasks import ImageEpisodes


@dataclass(frozen=True)
class AllClasses(FineTuned):
    """A classifier of all training classes, fine-tuned on a task."""


@dataclass(frozen=True)
class ImageTasks(Episodes):
    """The tasks of a meta-batch of images."""

    ways: int = setting(5, "N, classes of a task", at_least=2)


@dataclass(frozen=True)
class ImageFiles:
    """Where the images are."""

    data: str = setting("", "folder of the images, see docs/guides/few_shot.md", changeable=True)
    cache: str = setting("", "folder of the prepared images; empty for the user's cache", changeable=True)

    @property
    def folder(self) -> Path | None:
        """Where the images are, if that is said."""
        return Path(self.data) if self.data else None

    @property
    def prepared(self) -> Path:
        """Where the prepared images are kept."""
        return Path(self.cache) if self.cache else default_cache()


def image_methods(**own: type[Embedded]) -> Any:
    """Declare the method of an experiment on images: all there are, some of them with settings of its own."""
    return methods(
        "anil adapts the last layer alone; classifier learns all training classes at once, for fine-tuning and nearest "
        "neighbours; those from prototypical to neural-statistician embed images, one episode or batch per iteration, "
        "but for mann, mann-lstm, memory-module, snail and metanet, which read the images of --num-tasks tasks in "
        "random order",
        classifier=AllClasses,
        **{**EMBEDDING_METHODS, **MEMORY_METHODS, **IMAGE_METHODS, **own},
    )


@dataclass(frozen=True)
class ImageSettings(FewShotSettings):
    """The settings of a few-shot run on images."""

    episodes: ImageTasks = part(ImageTasks, "sampling")
    method: GradientDescent | Embedded = image_methods()  # type: ignore[assignment]
    files: ImageFiles = part(ImageFiles, "data")

    def __post_init__(self) -> None:
        if self.embeds and self.evaluation.statistics == "per-step":
            raise SettingError("--evaluation-statistics = per-step; allowed with a method that embeds: batch")
        method, iterations = self.method, self.run.iterations
        pretraining = method.pretraining_iterations if isinstance(method, Embedded) else 0
        if pretraining and 0 < iterations <= pretraining:
            allowed = f"fewer than --iterations = {iterations}"
            raise SettingError(f"--pretraining-iterations = {pretraining}; allowed: {allowed}")

    @property
    def without_effect(self) -> Mapping[str, str]:
        """Methods that embed take no inner steps; most learn one task at a time, some from no episodes."""
        method = self.method
        if isinstance(method, ImplicitSteps):
            return {"second_order": "method"}
        if not isinstance(method, Embedded):
            return {}
        single = [] if method.batched else ["num_tasks", *["queries"] * (not method.episodic)]
        return {**dict.fromkeys(["evaluation_steps", *single], "method"), **method.without_effect}

    @property
    def embeds(self) -> bool:
        """Whether the method embeds images, so that no step is taken on a task."""
        return isinstance(self.method, Embedded)

    @property
    def all_classes(self) -> bool:
        """Whether a classifier of all training classes is trained."""
        return isinstance(self.method, AllClasses)

    @property
    def any_ways(self) -> bool:
        """Whether the method takes tasks of any number of classes after training; else of those of training at most."""
        method = self.method
        return (
            not method.fixed_ways if isinstance(method, Embedded) else isinstance(method, AllClasses | PrototypeStart)
        )

    @property
    def kind_of_episodes(self) -> type[ImageEpisodes]:
        """The tasks of the method: those that read the support in order get it in a random order."""
        shuffled = isinstance(self.method, Embedded) and self.method.shuffled
        return ShuffledEpisodes if shuffled else ImageEpisodes


@dataclass(frozen=True)
class ImageExperiment(FewShotExperiment):
    """A few-shot experiment on images.

    Attributes:
        form: of the images that the network sees, given the settings.
    """

    form: Callable[[Any], PictureForm] = field(kw_only=True)

    def build_method(self, settings: Any, module: nn.Module, training: Any) -> Method:
        """The method with its module; a classifier's batches are as large as all query examples of a meta-batch."""
        if isinstance(settings.method, Embedded):
            return settings.method.build(module, training)
        if not settings.all_classes:
            return super().build_method(settings, module, training)
        if (size := current().world_size) > 1:
            raise SettingError(f"--method = classifier on {size} processes; allowed: one process")
        episodes = settings.episodes
        batch_size = episodes.num_tasks * episodes.ways * episodes.training_queries
        return Classifier(module, self.criterion, self.build_rule(settings), batch_size=batch_size)

    def meta_batch(self, settings: Any) -> int:
        """The number of tasks in a meta-batch; a classifier learns one, with all training classes."""
        single = settings.all_classes or (settings.embeds and not settings.method.batched)
        return 1 if single else settings.episodes.num_tasks

    def evaluate(self, settings: Any, learner: FewShotLearner, split: str) -> ImageEvaluation:
        """As of any few-shot experiment; for the test of methods that embed also with other shots and ways."""
        evaluation = super().evaluate(settings, learner, split)
        curves = {}
        if split == "test" and settings.embeds and learner.processes.rank == 0:
            curves = accuracy_curves(evaluation.learner, settings.evaluation.num_tasks, settings.any_ways)
        return ImageEvaluation(**vars(evaluation), curves=curves)

    def plots(self, evaluation: Any) -> dict[str, Any]:
        """As of any experiment: the first tasks with what was predicted, and the accuracy with other shots and ways.

        Of methods that read sequences also the accuracy by instance.
        """
        drawn = {"predictions": draw_predictions(evaluation)}
        if evaluation.curves:
            drawn["shots_and_ways"] = draw_curves(evaluation)
        if instances := [of for name, of in evaluation.others.items() if name.startswith("instance_")]:
            from metarl.experiments.runner.plots import by_instance  # which imports matplotlib

            drawn["instances"] = by_instance(instances)
        return drawn

    def record(self, settings: Any, learner: FewShotLearner) -> dict[str, Any]:
        """As of any few-shot experiment, with the classes of a task, and which classes and statistics it is about.

        Results are transductive where batch norms use statistics of the query images, on which their classes depend.
        """
        chosen = settings.method.batch_norm if settings.embeds else settings.evaluation.statistics
        judged = {"ways": settings.episodes.ways, "transductive": chosen == "batch"}
        if split := getattr(settings.files, "split", None):
            judged["characters"] = split
        return {**super().record(settings, learner), **judged}

    def judged_step(self, settings: Any) -> int:
        """As of any few-shot experiment; methods that embed take no steps."""
        return 0 if settings.embeds else super().judged_step(settings)


def training_episodes(settings: ImageSettings, images: ImagesBySplit, device: str) -> ImageEpisodes:
    """Training tasks, of images per split that go to a device."""
    on_device = {split: of.to(device) for split, of in images.items()}
    queries = 1 if "queries" in settings.without_effect else settings.episodes.training_queries
    return _episodes(settings, on_device, settings.episodes.shots, queries, "--shots")


def evaluation_episodes(settings: ImageSettings, training: Any) -> ImageEpisodes:
    """Tasks of evaluations, with as many query as support images, as in the paper."""
    shots, flag = settings.judged_shots, "--evaluation-shots" if settings.evaluation.shots else "--shots"
    purpose = ", for evaluations, which take as many query as support images"
    return _episodes(settings, training.images, shots, shots, flag, purpose)


def classes(settings: ImageSettings, training: ImageEpisodes) -> int:
    """The number of outputs of a network."""
    return len(training.images["train"]) if settings.all_classes else settings.episodes.ways


def pooled_network(settings: Any, training: ImageEpisodes) -> nn.Module:
    """Conv-4 with max pooling: with a linear layer for the classes of a task, or one that embeds; or a method's own."""
    shape, method = training.image_shape, settings.method
    if isinstance(method, Recurrent | FastWeights):
        return method.network(shape, settings.episodes.ways)
    if isinstance(method, Convolved):
        return embedding(method, shape, settings.network.filters)
    return ConvNet(shape, classes(settings, training), settings.network.filters, strided=False)


def _episodes(
    settings: ImageSettings, images: ImagesBySplit, shots: int, queries: int, flag: str, purpose: str = ""
) -> ImageEpisodes:
    ways = settings.episodes.ways
    try:
        return settings.kind_of_episodes(images, ways, shots, queries)
    except ValueError as error:
        raise SettingError(f"--ways = {ways}, {flag} = {shots}: {error}{purpose}") from error
