"""Images by class: of one number for all classes as a tensor, or of a number of its own for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from metarl.core.validation import require

_CHANNELS = (1, 3)


@dataclass(frozen=True)
class ImageClasses:
    """Images of several classes, each of which has its own number of them.

    Attributes:
        images: (all, H, W, C) uint8, those of the first class first.
        sizes: the number of images of each class.
        names: of the classes; empty where they have none.
    """

    images: Tensor
    sizes: tuple[int, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(sum(self.sizes) == len(self.images), "sizes", self.sizes, f"{len(self.images)} images together")
        named = len(self.names) in (0, len(self.sizes))
        require(named, "names", self.names, f"none, or one for each of {len(self.sizes)} classes")

    @classmethod
    def of(cls, images: "Tensor | ImageClasses") -> "ImageClasses":
        """Return images of one number for all classes, (class, example, H, W, C), as such classes."""
        if isinstance(images, ImageClasses):
            return images
        return cls(images.flatten(0, 1), (images.shape[1],) * len(images))

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: str | torch.device) -> Self:
        """The same classes with their images on a device."""
        return replace(self, images=self.images.to(device))

    def examples_of(self, classes: np.ndarray) -> int | np.ndarray:
        """Return how many images each of these classes has: one number where all classes have as many."""
        return self.sizes[0] if len(set(self.sizes)) == 1 else np.array(self.sizes)[classes]

    def drawn(self, classes: np.ndarray, examples: np.ndarray) -> Tensor:
        """Return images (..., H, W, C) from 0 to 1, given numbers of classes and of examples in them, (...) both."""
        first = np.concatenate([[0], np.cumsum(self.sizes)])
        index = torch.from_numpy(first[classes] + examples).to(self.images.device)
        return self.images[index].float() / 255

    def require_examples(self, split: str, wanted: str, count: int) -> None:
        """ValueError, which names the first class with fewer than `count` images.

        Args:
            split: of the classes, for the message.
            wanted: what they are for, for the message.
            count: images of each class.
        """
        for number, size in enumerate(self.sizes):
            if size < count:
                of = f"{split} class {self.names[number]}" if self.names else f"a {split} class"
                raise ValueError(f"{wanted} images of {size} in {of}; allowed: at most {size} together")


ImagesBySplit = Mapping[str, Tensor | ImageClasses]


def classes_of(images: ImagesBySplit) -> dict[str, ImageClasses]:
    """Return the classes of each split; ValueError unless all splits hold uint8 images (H, W, C) of one size."""
    if not isinstance(images, Mapping) or not images:
        found = "{}" if isinstance(images, Mapping) else f"a {type(images).__name__}"
        raise ValueError(f"images = {found}; allowed: a dict with a tensor of images for at least one split")
    sizes = {}
    for split, given in images.items():
        if not isinstance(given, Tensor | ImageClasses):
            raise ValueError(
                f"{split} images are a {type(given).__name__}; allowed: a tensor, such as torch.from_numpy makes"
            )
        wanted, tensor = (5, given) if isinstance(given, Tensor) else (4, given.images)
        if tensor.dtype != torch.uint8 or tensor.ndim != wanted:
            axes = "class, example, H, W, C" if wanted == 5 else "example, H, W, C"
            raise ValueError(
                f"{split} images are {tensor.dtype} with {tensor.ndim} axes; "
                f"allowed: torch.uint8 with {wanted} ({axes})"
            )
        require_channels_last(f"{split} images", tensor.shape)
        sizes[split] = tuple(tensor.shape[-3:])
    if len(set(sizes.values())) > 1:
        raise ValueError(f"images have the sizes {sizes}; allowed: one (H, W, C) for all splits")
    return {split: ImageClasses.of(given) for split, given in images.items()}


def require_channels_last(name: str, shape: Sequence[int]) -> None:
    """ValueError for a shape (..., 1 or 3, H, W), which is that of images with the channels first."""
    if shape[-3] in _CHANNELS and shape[-1] not in _CHANNELS:
        raise ValueError(
            f"{name} have the shape {tuple(shape)}, channels first; allowed: (..., H, W, C), as by permute"
        )


def split_of(classes: Mapping[str, ImageClasses], split: str) -> ImageClasses:
    """Return the classes of a split; ValueError for one that is not there."""
    if split not in classes:
        raise ValueError(f"split {split!r} is not there; allowed: {', '.join(classes)}")
    return classes[split]
