"""Functions to be minimised, as few-shot tasks: losses of a small classifier of images (Andrychowicz et al. 2016)."""

import numpy as np

from metarl.core.validation import require_whole
from metarl.few_shot.criteria import Criterion, cross_entropy
from metarl.few_shot.images.image_classes import ImagesBySplit
from metarl.few_shot.networks import averaged
from metarl.few_shot.tasks import Examples, FewShotTasks, ImageEpisodes


class ClassifierFunctions:
    """The functions f(x) = mean cross-entropy of a classifier with weights x on labelled images of some classes.

    Every function has classes of its own, numbered in random order; those of test functions are not among those of
    training functions. The query examples are the support examples, as f is to be minimised, not to generalise.
    Deviation: f is a mean over all images of a task, where the paper draws 128 of MNIST's at every step.

    Args:
        images: of each split, as of `ImageEpisodes`.
        ways: classes of a function.
        shots: images of each class.
        pixels: height and width to which images are averaged.

    Raises:
        ValueError: numbers that the images do not allow.
    """

    def __init__(self, images: ImagesBySplit, ways: int = 10, shots: int = 19, pixels: int = 10):
        require_whole("pixels", pixels)
        self._episodes = ImageEpisodes(images, ways, shots, queries=1)  # whose query images are left out
        self.images, self.ways, self.pixels = self._episodes.images, ways, pixels

    @property
    def size(self) -> int:
        """Numbers of an input."""
        return self.pixels**2 * self._episodes.image_shape[2]

    def sample(self, num_tasks: int, split: str, rng: np.random.Generator) -> FewShotTasks:
        """Draw functions: inputs (M, ways * shots, size) from 0 to 1, and class numbers (M, ways * shots)."""
        drawn = self._episodes.sample(num_tasks, split, rng).support
        examples = Examples(averaged(drawn.inputs, self.pixels), drawn.targets)
        return FewShotTasks(examples, examples)


# Of classifiers of which the loss alone is of interest, not how many images are classified rightly.
CLASSIFIER_LOSS = Criterion("cross_entropy", cross_entropy, cross_entropy, higher_is_better=False)
