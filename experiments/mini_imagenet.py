"""Meta-train on MiniImagenet, by default 5-way 1-shot with the paper's settings."""

from dataclasses import dataclass
from pathlib import Path

import metarl
from experiments.configuration import setting, with_default
from experiments.few_shot import FewShotExperiment, FewShotSettings, build_few_shot, image_tasks
from experiments.images import default_cache, mini_imagenet
from experiments.omniglot import tasks
from experiments.training import main
from metarl.models import ConvNet


@dataclass(frozen=True)
class MiniImagenetSettings(FewShotSettings):
    """Meta-train a network to tell classes of photographs apart from one or a few of each."""

    tasks: int = with_default(FewShotSettings, "tasks", 4, "paper, 1-shot; 2 for 5-shot")
    ways: int = setting(5, "N, classes of a task", at_least=2, source="paper")
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


def build(settings: MiniImagenetSettings) -> metarl.FewShotLearner:
    """The learner on MiniImagenet."""
    images = mini_imagenet(Path(settings.data) if settings.data else None, Path(settings.cache or default_cache()))
    episodes = image_tasks(settings, images)

    def network() -> ConvNet:
        return ConvNet((84, 84, 3), settings.ways, settings.filters, strided=False)

    return build_few_shot(settings, episodes, network, metarl.CLASSIFICATION)


EXPERIMENT = FewShotExperiment("mini_imagenet", MiniImagenetSettings, build, distribution=tasks)

if __name__ == "__main__":
    main(EXPERIMENT)
