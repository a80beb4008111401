"""Meta-train on pictures of one's own: `python experiments/images.py --data FOLDER --ways 5 --shots 5`.

The folder holds a folder per class, or `train/`, `validation/` and `test/` with a folder per class each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from metarl.core.settings import SettingError, check_settings, setting
from metarl.experiments.runner.embedding_methods import Pairs, Prototypes, Ridge
from metarl.experiments.runner.few_shot_images import (
    ImageExperiment,
    ImageFiles,
    ImageSettings,
    evaluation_episodes,
    image_methods,
    pooled_network,
    training_episodes,
)
from metarl.experiments.runner.memory_methods import Statistician
from metarl.experiments.runner.recipes import RECOMMENDED, Recipe
from metarl.experiments.runner.settings import part, same_as
from metarl.experiments.runner.training import main
from metarl.few_shot.criteria import CLASSIFICATION
from metarl.few_shot.images.image_folders import SplitRule, own_images
from metarl.few_shot.images.pictures import PictureForm
from metarl.few_shot.learner import FewShotLearner
from metarl.few_shot.method import Method
from metarl.few_shot.methods.embedding import EmbeddingMethod
from metarl.few_shot.tasks import ImageEpisodes
from metarl.runs import RunError

RECIPES = {  # nothing is published about pictures of one's own
    RECOMMENDED: Recipe(
        {
            "method": "prototypical",
            "shots": 5,
            "queries": 5,
            "num_tasks": 4,
            "iterations": 2_000,
            "final_learning_rate": 1e-5,
            "evaluate_every": 200,
            "evaluation_steps": 5,
        }
    ),
    "maml": Recipe({"method": "maml", "inner_steps": 5, "inner_step_size": 0.05, "clip": 10.0, "iterations": 10_000}),
}


@dataclass(frozen=True)
class OwnPrototypes(Prototypes):
    """Prototypical networks, trained on episodes like those of the test."""

    training_ways: int | None = same_as(EmbeddingMethod, "training_ways")


@dataclass(frozen=True)
class OwnRidge(Ridge):
    """R2-D2, trained on episodes like those of the test."""

    training_ways: int | None = same_as(EmbeddingMethod, "training_ways")


@dataclass(frozen=True)
class OwnPairs(Pairs):
    """Siamese networks, trained on two images of every class at once."""

    pairs: int | None = same_as(  # type: ignore[assignment]
        Pairs,
        "pairs",
        default=None,
        source="",
        help="classes of a training task, two images of each; none for all of them",
    )

    def build(self, module: nn.Module, training: ImageEpisodes) -> EmbeddingMethod:
        """As of any of them."""
        own = self.pairs or max(2, len(training.images["train"]))
        return Pairs(self.batch_norm, self.strided, own).build(module, training)


@dataclass(frozen=True)
class OwnSets(Statistician):
    """The neural statistician, trained on as many sets as there are classes."""

    sets: int | None = same_as(  # type: ignore[assignment]
        Statistician, "sets", default=None, source="", help="sets of a training task; none for one of each class"
    )

    def build(self, module: nn.Module, training: ImageEpisodes) -> Method:
        """As of any of them."""
        own = {field.name: getattr(self, field.name) for field in fields(Statistician)}
        return Statistician(**{**own, "sets": self.sets or len(training.images["train"])}).build(module, training)


@dataclass(frozen=True)
class Convolutions:
    """Four convolutions with pooling."""

    filters: int = setting(64, "filters of each convolution", at_least=1)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class OwnFiles(ImageFiles):
    """Where the pictures are, and how they are read."""

    data: str = same_as(
        ImageFiles, "data", help="folder of class folders, or of train/, validation/ and test/ with class folders each"
    )
    size: int = setting(84, "pixels of each side, to which pictures are resized", at_least=16, at_most=512)
    colour: str = setting("rgb", "what pictures are turned into", choices=("rgb", "grey"))
    split_seed: int = setting(
        0, "of the rule that splits classes, where there is no train/, validation/ and test/", at_least=0
    )
    held_out_share: float = setting(
        0.2, "of the classes, by that rule, for validation, and as many for the test", more_than=0, at_most=0.45
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class OwnSettings(ImageSettings):
    """The settings of a run on pictures of one's own."""

    method: Any = image_methods(
        prototypical=OwnPrototypes, siamese=OwnPairs, **{"r2-d2": OwnRidge, "neural-statistician": OwnSets}
    )
    network: Convolutions = part(Convolutions, "network")
    files: OwnFiles = part(OwnFiles, "data")


def form(settings: OwnSettings) -> PictureForm:
    """What pictures are turned into."""
    size = settings.files.size
    return PictureForm(size, size, 1 if settings.files.colour == "grey" else 3)


def training_tasks(settings: OwnSettings, device: str) -> ImageEpisodes:
    """Tasks of the training classes."""
    files = settings.files
    if files.folder is None:
        raise SettingError("--data is missing; allowed: a folder with a folder of pictures for each class")
    rule = SplitRule(files.split_seed, files.held_out_share, settings.episodes.ways)
    return training_episodes(settings, own_images(files.folder, files.prepared, form(settings), rule), device)


class OwnExperiment(ImageExperiment):
    """The experiment on pictures of one's own, whose runs and records name the classes of each split."""

    def data_of(self, learner: FewShotLearner) -> dict[str, Any]:
        """The names of the classes of each split."""
        tasks: Any = learner.task_distribution
        return {"classes": {split: list(of.names) for split, of in tasks.images.items()}}

    def check_data(self, config: Mapping[str, Any], learner: FewShotLearner) -> None:
        """RunError where a class that the run trains on is held out now, or the other way round."""
        owners = {name: split for split, names in config.get("classes", {}).items() for name in names}
        for split, names in self.data_of(learner)["classes"].items():
            for name in names:
                if "train" in (before := owners.get(name, split), split) and before != split:
                    raise RunError(
                        f"class {name} is of {split} now and was of {before} when the run began; allowed: the class "
                        "folders of then, or train/, validation/ and test/ with the classes in config.json"
                    )

    def record(self, settings: Any, learner: FewShotLearner) -> dict[str, Any]:
        """As of any experiment on images, with the names of the classes."""
        return {**super().record(settings, learner), **self.data_of(learner)}


EXPERIMENT = OwnExperiment(
    "images",
    "Meta-train a network to tell classes of one's own pictures apart from one or a few of each.",
    OwnSettings,
    RECIPES,
    paper_recipe="",  # there is no paper
    criterion=CLASSIFICATION,
    training_tasks=training_tasks,
    evaluation_tasks=evaluation_episodes,
    network=pooled_network,
    form=form,
)

if __name__ == "__main__":
    main(EXPERIMENT)
