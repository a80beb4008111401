"""The splits of Omniglot's 1,623 characters that results in the literature are for, which differ by some points.

    mixed                  1,100, 100 and 423 characters at random, alphabets mixed, as in Finn et al. (2017): easier
    vinyals                1,028, 172 and 423 characters, alphabets kept apart, as Snell et al. (2017) took over from
                           Vinyals et al. (2016); Gurmukhi is in two of them
    background-evaluation  the set's own two parts: 964 characters, of which 100 at random are for validation, and 659
                           for the test. Deviation: where it is used in the literature, all 964 are trained on

Rotations by 90 degrees are classes of their own, except in the test of background-evaluation.
"""

from collections.abc import Sequence

import numpy as np

from metarl.core.randomness import keyed_generator
from metarl.core.validation import require_one_of
from metarl.few_shot.tasks import split_classes

SPLITS = ("mixed", "vinyals", "background-evaluation")
MIXED_SIZES = {"train": 1100, "validation": 100, "test": 423}
BACKGROUND_VALIDATION = 100
VINYALS_VALIDATION = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
VINYALS_TEST = (
    *("Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti"),
    *("Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"),
    *(f"Gurmukhi/character{number}" for number in range(42, 46)),
)


def split_characters(split: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the numbers of the characters of `train`, `validation` and `test`.

    Args:
        split: one of `SPLITS`.
        names: of all characters: part/alphabet/character, where part is `images_background` or `images_evaluation`.

    Raises:
        ValueError: an unknown split.
    """
    require_one_of(SPLITS, "split", split)
    if split == "mixed":
        return split_classes(len(names), MIXED_SIZES, keyed_generator(0, "omniglot/split"))
    if split == "vinyals":
        return _numbers([_of_vinyals(name) for name in names])
    parts = ["test" if name.startswith("images_evaluation/") else "train" for name in names]
    background = _numbers(parts)["train"]
    generator = keyed_generator(0, "omniglot/background")
    for number in generator.choice(background, BACKGROUND_VALIDATION, replace=False):
        parts[number] = "validation"
    return _numbers(parts)


def _of_vinyals(name: str) -> str:
    _, alphabet, _ = name.split("/")
    character = name.split("/", 1)[1]
    if alphabet in VINYALS_VALIDATION:
        return "validation"
    return "test" if alphabet in VINYALS_TEST or character in VINYALS_TEST else "train"


def _numbers(parts: Sequence[str]) -> dict[str, np.ndarray]:
    return {part: np.flatnonzero(np.array(parts) == part) for part in ("train", "validation", "test")}
