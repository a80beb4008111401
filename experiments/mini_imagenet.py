"""Meta-train on MiniImagenet, by default 5-way 1-shot with the paper's settings."""

from dataclasses import dataclass
from pathlib import Path

import metarl
from metarl.experiments.runner.configuration import setting, with_default
from metarl.experiments.runner.few_shot import FewShotSettings
from metarl.experiments.runner.few_shot_images import ImageExperiment, ImageSettings, build_images, episodes
from metarl.experiments.runner.images import default_cache, mini_imagenet
from metarl.experiments.runner.training import main
from metarl.few_shot.networks import ConvNet


@dataclass(frozen=True)
class MiniImagenetSettings(ImageSettings):
    """Meta-train a network to tell classes of photographs apart from one or a few of each."""

    tasks: int = with_default(FewShotSettings, "tasks", 4, "paper, 1-shot; 2 for 5-shot")
    queries: int = with_default(FewShotSettings, "queries", 15, "paper")
    inner_steps: int = with_default(FewShotSettings, "inner_steps", 5, "paper")
    inner_step_size: float = with_default(
        FewShotSettings, "inner_step_size", 0.05, "paper: 0.01 of N times the mean loss"
    )
    clip: float = with_default(FewShotSettings, "clip", 10.0, "paper's code")
    filters: int = setting(32, "of each convolution", at_least=1, source="paper")
    data: str = setting(
        "", "folder with train/, val/, test/, or the Ravi split's csv files, or pickles", changeable=True
    )
    cache: str = setting("", "folder of the prepared images; empty for the user's cache", changeable=True)


def network(settings: MiniImagenetSettings, classes: int) -> ConvNet:
    """The paper's network."""
    return ConvNet((84, 84, 3), classes, settings.filters, strided=False)


def build(settings: MiniImagenetSettings) -> metarl.FewShotLearner:
    """The learner on MiniImagenet."""
    images = mini_imagenet(Path(settings.data) if settings.data else None, Path(settings.cache or default_cache()))
    return build_images(settings, images, network)


EXPERIMENT = ImageExperiment("mini_imagenet", MiniImagenetSettings, build, distribution=episodes, network=network)

if __name__ == "__main__":
    main(EXPERIMENT)
