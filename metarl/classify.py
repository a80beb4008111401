"""Classify images of one's own with a saved run: `model = metarl.open_classifier(RUN)`.

Which network and method a run has is known to its experiment alone, so `metarl.experiments` is imported when a run is
opened. Nothing else in the library needs it.
"""

import importlib
from pathlib import Path

from metarl.few_shot.images.classifier import ImageClassifier

__all__ = ["open_classifier"]


def open_classifier(
    run: Path | str, best: bool = False, inner_steps: int | None = None, script: Path | str | None = None
) -> ImageClassifier:
    """Open a run on images, such as one of `images.py`; the images that it was trained on are not needed.

    Args:
        run: its directory.
        best: whether the best iterate is wanted, by validation accuracy, and not the last one.
        inner_steps: gradient steps to learn classes; None for as many as in the run's evaluations.
        script: of an experiment of one's own, where it has moved since the run began.

    Raises:
        RunError: a run that cannot be read, or one of another experiment.
        ValueError: steps that cannot be.
    """
    return importlib.import_module("metarl.experiments.runner.classifiers").classifier_of(
        run, best, inner_steps, script
    )
