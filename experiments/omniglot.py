"""Meta-train on Omniglot, by default 5-way 1-shot with the paper's settings."""

from dataclasses import dataclass
from pathlib import Path

import metarl
from experiments.configuration import setting, with_default
from experiments.few_shot import FewShotExperiment, FewShotSettings, build_few_shot, image_tasks
from experiments.images import default_cache, omniglot
from experiments.training import main
from metarl.models import MLP, ConvNet


@dataclass(frozen=True)
class OmniglotSettings(FewShotSettings):
    """Meta-train a network to tell handwritten characters apart from one or a few drawings of each."""

    tasks: int = with_default(FewShotSettings, "tasks", 32, "paper, 5-way; 16 for 20-way")
    ways: int = setting(5, "N, classes of a task", at_least=2, source="paper")
    network: str = setting("conv", "four strided convolutions, or linear layers", choices=("conv", "mlp"))
    inner_step_size: float = with_default(
        FewShotSettings, "inner_step_size", 2.0, "paper: 0.4 of N times the mean loss; 2.0 for 20-way too"
    )
    filters: int = setting(64, "of each convolution", at_least=1, source="paper")
    evaluation_steps: int = with_default(FewShotSettings, "evaluation_steps", 3, "paper; 5 for 20-way")
    data: str = setting(
        "", "folder of images_background.zip and images_evaluation.zip; none downloads them", changeable=True
    )
    cache: str = setting("", "folder of the prepared images; empty for the user's cache", changeable=True)


def build(settings: OmniglotSettings) -> metarl.FewShotLearner:
    """The learner on Omniglot."""
    images = omniglot(Path(settings.data) if settings.data else None, Path(settings.cache or default_cache()))
    episodes = image_tasks(settings, images)

    def network() -> ConvNet | MLP:
        if settings.network == "mlp":
            return MLP((28 * 28, 256, 128, 64, 64, settings.ways), normalised=True)
        return ConvNet((28, 28, 1), settings.ways, settings.filters)

    return build_few_shot(settings, episodes, network, metarl.CLASSIFICATION)


def tasks(settings: OmniglotSettings, learner: metarl.FewShotLearner, shots: int) -> metarl.ImageEpisodes:
    """Tasks of evaluations, with as many query as support images, as in the paper."""
    assert isinstance(learner.distribution, metarl.ImageEpisodes)
    return metarl.ImageEpisodes(learner.distribution.images, settings.ways, shots, shots)


EXPERIMENT = FewShotExperiment("omniglot", OmniglotSettings, build, distribution=tasks)

if __name__ == "__main__":
    main(EXPERIMENT)
