"""Small runs on sine curves, and a set of small photographs."""

from PIL import Image

from metarl.experiments import sine
from metarl.experiments.runner.training import main

SIZES = {
    "iterations": 6,
    "num-tasks": 3,
    "hidden-sizes": 5,
    "threads": 1,
    "record-every": 2,
    "checkpoint-every": 2,
    "evaluate-every": 4,
    "evaluation-tasks": 30,
    "evaluation-steps": 2,
}
TINY = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]


def train_sine(*arguments, evaluated=True):
    """A tiny run on sine curves, in this process."""
    main(sine.EXPERIMENT, [*TINY, *map(str, arguments)], evaluated)


def small_settings(**changes):
    """Settings of a tiny run on sine curves."""
    small = {"num_tasks": 2, "hidden_sizes": (4,), "threads": 1, "evaluation_tasks": 3, "evaluation_steps": 2}
    return sine.EXPERIMENT.configure("", **{**small, **changes})


def make_photographs(folder, classes=3, images=4):
    """Folders of classes in train, val and test; the images of a class are of one colour."""
    for split in ("train", "val", "test"):
        for name in range(classes):
            place = folder / split / f"{split}{name}"
            place.mkdir(parents=True)
            for number in range(images):
                Image.new("RGB", (90, 84), (80 * name, 60 * number, 5)).save(place / f"{number}.png")
