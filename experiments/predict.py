"""Classify pictures with a run: `python experiments/predict.py RUN --support cat=a.png dog=b.png --query c.png`."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import metarl
from metarl.core.settings import SettingError
from metarl.experiments.runner.command_line import OneLineParser
from metarl.experiments.runner.scripts import SCRIPT_HELP
from metarl.experiments.runner.start import read_run
from metarl.experiments.runner.training import one_line_errors
from metarl.few_shot.images.pictures import read_picture


def main(arguments: Sequence[str] | None = None) -> None:
    """Learn classes from a few pictures of each, and print the probabilities of each class for new pictures."""
    parser = OneLineParser("Learn classes from a few pictures of each with a saved run, and classify new pictures.")
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run of images, omniglot or mini_imagenet")
    parser.add_argument(
        "--support",
        nargs="+",
        required=True,
        metavar="CLASS=FILE,FILE",
        help="pictures of each class, which may be named more than once",
    )
    parser.add_argument("--query", nargs="+", required=True, type=Path, metavar="FILE", help="pictures to classify")
    parser.add_argument("--steps", type=int, metavar="INT", help="gradient steps (default: the run's evaluation_steps)")
    parser.add_argument("--best", action="store_true", help="the best iterate, by the selection metric, not the last")
    parser.add_argument("--script", type=Path, metavar="FILE", help=SCRIPT_HELP)
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors():
        labelled = [pair for text in chosen.support for pair in labelled_files(text)]
        if chosen.steps is not None and chosen.steps < 0:
            raise SettingError(f"--steps = {chosen.steps}; allowed: at least 0")
        names = [name for name, _ in labelled]
        if len(set(names)) < 2:
            raise SettingError(f"--support = {' '.join(chosen.support)}; allowed: two classes or more")
        if chosen.steps is not None:
            _, settings, _ = read_run(chosen.run, script=chosen.script)
            if "evaluation_steps" in settings.without_effect:
                raise SettingError(f"--steps = {chosen.steps} of a method without gradient steps; allowed: without it")
        model = metarl.open_classifier(chosen.run, chosen.best, chosen.steps, chosen.script)
        pictures = [_read(file) for _, file in labelled]
        new = [_read(file) for file in chosen.query]
        try:
            model.learn(pictures, names)
        except ValueError as error:  # too many classes for a network with an output for each
            raise SettingError(f"--support: {error}") from error
        print(table(chosen.query, [str(name) for name in model.classes], model.probabilities(new).numpy()))


def labelled_files(text: str) -> list[tuple[str, Path]]:
    """Read CLASS=FILE,FILE; SettingError for another form."""
    name, separator, files = text.partition("=")
    if not name or not separator or not all(files.split(",")):
        raise SettingError(f"--support = {text}; allowed: CLASS=FILE,FILE, such as cat=a.png,b.png")
    return [(name, Path(file)) for file in files.split(",")]


def table(files: Sequence[Path], classes: Sequence[str], probabilities: np.ndarray) -> str:
    """A line for each picture: the most probable class, and the probabilities of all."""
    widths = [max(len(name), 6) for name in classes]
    first = max(len("picture"), *(len(str(file)) for file in files))
    second = max(len("class"), *map(len, classes))
    header = [f"{'picture':{first}}  {'class':{second}}"]
    lines = [header + [f"{name:>{width}}" for name, width in zip(classes, widths, strict=True)]]
    for file, row in zip(files, probabilities, strict=True):
        cells = [f"{value:>{width}.4f}" for value, width in zip(row, widths, strict=True)]
        lines.append([f"{file!s:{first}}  {classes[row.argmax()]:{second}}", *cells])
    return "\n".join("  ".join(line) for line in lines)


def _read(file: Path) -> np.ndarray:
    """A picture as (H, W, 3) uint8, of its own size."""
    return np.asarray(read_picture(file).convert("RGB"))


if __name__ == "__main__":
    main()
