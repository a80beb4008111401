"""Meta-train on Omniglot, by default 5-way 1-shot with the paper's settings."""

from dataclasses import dataclass
from pathlib import Path

import metarl
from metarl.experiments.runner.configuration import setting, with_default
from metarl.experiments.runner.few_shot import FewShotSettings
from metarl.experiments.runner.few_shot_images import ImageExperiment, ImageSettings, build_images, episodes
from metarl.experiments.runner.images import default_cache, omniglot
from metarl.experiments.runner.training import main
from metarl.few_shot.networks import MLP, ConvNet


@dataclass(frozen=True)
class OmniglotSettings(ImageSettings):
    """Meta-train a network to tell handwritten characters apart from one or a few drawings of each."""

    tasks: int = with_default(FewShotSettings, "tasks", 32, "paper, 5-way; 16 for 20-way")
    network: str = setting("conv", "four strided convolutions, or linear layers", choices=("conv", "mlp"))
    inner_step_size: float = with_default(
        FewShotSettings, "inner_step_size", 2.0, "paper: 0.4 of N times the mean loss; 2.0 for 20-way too"
    )
    filters: int = setting(64, "of each convolution", at_least=1, source="paper", only=("network", "conv"))
    evaluation_steps: int = with_default(FewShotSettings, "evaluation_steps", 3, "paper; 5 for 20-way")
    data: str = setting(
        "", "folder of images_background.zip and images_evaluation.zip; none downloads them", changeable=True
    )
    cache: str = setting("", "folder of the prepared images; empty for the user's cache", changeable=True)


def network(settings: OmniglotSettings, classes: int) -> ConvNet | MLP:
    """One of the paper's two networks."""
    if settings.network == "mlp":
        return MLP((28 * 28, 256, 128, 64, 64, classes), normalised=True)
    return ConvNet((28, 28, 1), classes, settings.filters)


def build(settings: OmniglotSettings) -> metarl.FewShotLearner:
    """The learner on Omniglot."""
    images = omniglot(Path(settings.data) if settings.data else None, Path(settings.cache or default_cache()))
    return build_images(settings, images, network)


EXPERIMENT = ImageExperiment("omniglot", OmniglotSettings, build, distribution=episodes, network=network)

if __name__ == "__main__":
    main(EXPERIMENT)
