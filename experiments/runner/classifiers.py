"""Classifiers of saved runs on images, built without the images that the runs were trained on."""

from pathlib import Path
from typing import Any

import torch

from metarl.core.ambient import in_standard_modes
from metarl.core.parameters import restore_constants
from metarl.core.validation import require_whole
from metarl.experiments.runner import migration
from metarl.experiments.runner.few_shot_images import ImageExperiment
from metarl.experiments.runner.start import BEST, CHECKPOINT, read_run
from metarl.few_shot.images.classifier import ImageClassifier
from metarl.few_shot.images.image_classes import ImageClasses
from metarl.few_shot.method import Method
from metarl.few_shot.tasks import ImageEpisodes
from metarl.runs import RunError

_KNOWN = "images, omniglot or mini_imagenet"


def classifier_of(
    run: Path | str, best: bool = False, inner_steps: int | None = None, script: Path | str | None = None
) -> ImageClassifier:
    """Open the classifier of a run; arguments and errors as of `metarl.open_classifier`."""
    if inner_steps is not None:
        require_whole("inner_steps", inner_steps, at_least=0)
    directory, checkpoint = Path(run), BEST if best else CHECKPOINT
    experiment, settings, state = read_run(directory, checkpoint, script=script)
    if not isinstance(experiment, ImageExperiment):
        raise RunError(
            f"{directory} is a run of {experiment.name}, which classifies no images; allowed: a run of {_KNOWN}"
        )
    steps = settings.evaluation.inner_steps if inner_steps is None else inner_steps
    try:
        learned = migration.checkpoint(state)["learner"]
        method = _method(experiment, settings, learned["theta"])
        restore_constants(method.module, learned.get("constants"))
        most = None if settings.any_ways else settings.episodes.ways
        trained = method.at(int(learned["iteration"]))
        return ImageClassifier(trained, learned["theta"], experiment.form(settings), steps, most)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{directory / checkpoint} does not fit the settings of the run: {error}") from error


@in_standard_modes
def _method(experiment: ImageExperiment, settings: Any, theta: dict[str, Any]) -> Method:
    """The method with its network, as it is before training; the generator of torch is left as it was."""
    with torch.random.fork_rng(devices=[]):
        training = _like_training(experiment, settings, theta)
        return experiment.build_method(settings, experiment.network(settings, training), training)


def _like_training(experiment: ImageExperiment, settings: Any, theta: dict[str, Any]) -> ImageEpisodes:
    """Training tasks of black images, as many classes of them as theta knows; they take no memory."""
    episodes = settings.episodes
    of_classes = next((theta[name] for name in ("classifier.weight", "head.weight") if name in theta), ())
    classes = max(episodes.ways, len(of_classes))
    examples = episodes.shots + episodes.training_queries
    black = torch.zeros(1, *experiment.form(settings).shape, dtype=torch.uint8).expand(classes * examples, -1, -1, -1)
    images = {"train": ImageClasses(black, (examples,) * classes)}
    return settings.kind_of_episodes(images, episodes.ways, episodes.shots, episodes.training_queries)
