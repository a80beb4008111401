"""A classifier of images: it learns classes from a few labelled images of each, with what was meta-learned before."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metarl.core.ambient import in_standard_modes
from metarl.core.errors import NonFiniteError
from metarl.core.parameters import Parameters, expand_over_tasks, require_alike
from metarl.core.randomness import keyed_generator
from metarl.core.validation import require
from metarl.few_shot.images.image_classes import require_channels_last
from metarl.few_shot.method import Method, State
from metarl.few_shot.methods.embedding import EmbeddingMethod
from metarl.few_shot.normalisation import batch_norms, batch_statistics
from metarl.few_shot.tasks import Examples

if TYPE_CHECKING:
    from metarl.few_shot.images.pictures import PictureForm  # which imports Pillow

_TOGETHER = 256  # images that are predicted at a time


class ImageClassifier:
    """Classifies images of one's own; `metarl.open_classifier` makes one of a saved run.

        model = metarl.open_classifier("runs/pets")
        model.learn(images, labels)
        model.probabilities(new_images)    # (Q, classes), columns in the order of model.classes

    Images are uint8 arrays (N, H, W, C) of numpy or torch, with 1 channel (grey) or 3 (RGB), or a list of arrays
    (H, W, C) of any sizes; they are resized as those of the run were. No image's class depends on the other new images:
    where the method normalises by the batch at hand, it takes the statistics of the labelled images instead.

    Args:
        method: with its module, as it is after training; it must not be used elsewhere.
        theta: meta-parameters, without an axis of tasks.
        form: of the images that the method was trained on.
        inner_steps: that are taken to learn; without effect for methods that take none.
        most_classes: how many classes there may be; None for any number.
    """

    def __init__(
        self,
        method: Method,
        theta: Parameters,
        form: "PictureForm",
        inner_steps: int = 0,
        most_classes: int | None = None,
    ):
        require_alike("parameters", theta, method.meta_parameters())
        if isinstance(method, EmbeddingMethod) and method.batch_norm == "batch":
            method = replace(method, batch_norm="support")
        self._method, self._theta = method, expand_over_tasks(theta, 1)
        self.form, self.inner_steps, self.most_classes = form, inner_steps, most_classes
        self.classes: tuple[Hashable, ...] = ()
        self._state: State = {}

    @in_standard_modes
    def learn(self, images: Any, labels: Sequence[Hashable]) -> None:
        """Learn to tell classes apart; what was learned before is forgotten.

        Args:
            images: one or more of each class.
            labels: of each image its class, such as a name or a number.

        Raises:
            ValueError: images or labels that cannot be used.
        """
        inputs = self._inputs("images", images)
        names = _as_names(labels, len(inputs))
        classes = tuple(dict.fromkeys(names))
        require(len(classes) > 1, "classes", classes, "two or more")
        if self.most_classes is not None and len(classes) > self.most_classes:
            raise ValueError(
                f"labels have {len(classes)} classes; allowed: at most {self.most_classes}, as the network was trained"
            )
        targets = torch.tensor([classes.index(name) for name in names])
        order = targets.argsort(stable=True)  # as in training, images stand in the order of classes, or in a random one
        if self._method.reads_in_order:
            order = order[torch.from_numpy(keyed_generator(0, "classifier/order").permutation(len(order)))]
        support = Examples(inputs[order].unsqueeze(0), targets[order].unsqueeze(0))
        theta = self._theta
        state = self._method.states(theta, support, self.inner_steps)[-1]
        if not isinstance(self._method, EmbeddingMethod) and batch_norms(self._method.module):
            with torch.no_grad():
                seen = batch_statistics(
                    self._method.module, [lambda: self._method.predict(theta, state, support.inputs)]
                )
            self._statistics = expand_over_tasks(seen, 1)
        else:
            self._statistics = {}
        self._state, self.classes = state, classes

    @in_standard_modes
    @torch.no_grad()
    def probabilities(self, images: Any) -> Tensor:
        """Return the probability of each class for each image, (Q, classes), columns in the order of `classes`.

        Raises:
            ValueError: images that cannot be used, or nothing was learned.
            NonFiniteError: the outputs of the network are not finite.
        """
        require(bool(self.classes), "classes", self.classes, "what learn(images, labels) has learned")
        inputs, found = self._inputs("images", images), []
        theta = {**self._theta, **self._statistics}
        for part in inputs.split(_TOGETHER):
            outputs = self._method.predict(theta, self._state, part.unsqueeze(0))[0, :, : len(self.classes)]
            found.append(outputs.softmax(dim=1))
        result = torch.cat(found)
        if not (finite := result.isfinite().all(dim=1)).all():
            number = int(finite.logical_not().nonzero()[0])
            raise NonFiniteError(f"the outputs for image {number} are not finite")
        return result

    def _inputs(self, name: str, images: Any) -> Tensor:
        """Images as the network takes them, (N, H, W, C) from 0 to 1."""
        arrays = _as_arrays(name, images)
        if not arrays:
            raise ValueError(f"{name} are none; allowed: one or more")
        return torch.from_numpy(np.stack([self.form.of_array(array) for array in arrays])).float() / 255


def _as_names(labels: Any, count: int) -> list[Hashable]:
    """The class of each of `count` images; ValueError for what is no sequence of names or numbers."""
    if isinstance(labels, set | str | bytes) or not isinstance(labels, Iterable):
        raise ValueError(f"labels are a {type(labels).__name__}; allowed: a sequence with the class of each image")
    given = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    names = [label.item() if isinstance(label, Tensor) and not label.ndim else label for label in given]
    if len(names) != count:
        raise ValueError(f"labels are {len(names)} for {count} images; allowed: one for each")
    for number, name in enumerate(names):
        if not isinstance(name, Hashable) or isinstance(name, Tensor) or name != name:  # as a NaN
            raise ValueError(f"labels[{number}] is {name!r}; allowed: a name or a number")
    return names


def _as_arrays(name: str, images: Any) -> list[np.ndarray]:
    """Each image as an array (H, W, C); ValueError for what is no uint8 image."""
    if isinstance(images, Tensor | np.ndarray):
        if images.ndim != 4:
            raise ValueError(f"{name} have the shape {tuple(images.shape)}; allowed: (N, H, W, C), without other axes")
        require_channels_last(name, images.shape)
    elif not isinstance(images, Iterable) or isinstance(images, str | bytes):
        raise ValueError(f"{name} are a {type(images).__name__}; allowed: an array (N, H, W, C) or a list of (H, W, C)")
    found = []
    for number, image in enumerate(images):
        array = image.cpu().numpy() if isinstance(image, Tensor) else image
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
            kind = f"{array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{name}[{number}] is of type {kind}; allowed: uint8, from 0 to 255")
        if array.ndim != 3 or array.shape[2] not in (1, 3) or not array.size:
            raise ValueError(f"{name}[{number}] has the shape {array.shape}; allowed: (H, W, 1) or (H, W, 3)")
        found.append(array)
    return found
