"""The command `metarl`: every script of `metarl.experiments` under one name, such as `metarl evaluate RUN`.

A command is a module of `metarl.experiments` with a function `main(arguments)`, the one that its script calls. `train`
takes the name of a launcher, written with dashes or underscores: `metarl train navigation-2d --seed 1`.
"""

import importlib
import pkgutil
import sys
from collections.abc import Sequence

import metarl.experiments
from metarl.core.settings import SettingError, nearest

COMMANDS = {  # by module of metarl.experiments; its other modules are launchers
    "evaluate": "evaluate a run on held-out tasks",
    "adapt": "adapt a run's policy to one task, and save it",
    "predict": "classify new pictures, given a few of each class",
    "benchmark": "time the parts of an experiment",
    "gpu_report": "compare a GPU with the CPU: the same numbers, times, memory",
    "reproduce": "train recipes, evaluate them and keep the results",
    "compare": "compare rows of results: seeds, intervals, probability of improvement",
}
CHECK = "say what is wrong with a task distribution, MODULE:OBJECT"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first word names with the words that follow it."""
    from metarl.experiments.runner.training import one_line_errors  # which imports torch

    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or words[0] in ("--help", "-h"):
        print(usage())
        return
    command, *rest = words
    with one_line_errors():
        if command not in (known := ("train", *COMMANDS, "check")):
            raise SettingError(f"COMMAND = {command!r}; allowed: {', '.join(known)}{nearest(command, known)}")
        if command == "train":
            _train(rest)
            return
        sys.argv[0] = f"metarl {command}"  # the name in usages and in errors
        importlib.import_module("metarl.check" if command == "check" else f"metarl.experiments.{command}").main(rest)


def launchers() -> list[str]:
    """The names of all launchers, with underscores."""
    return [module.name for module in pkgutil.iter_modules(metarl.experiments.__path__)
            if not module.ispkg and module.name not in COMMANDS]  # fmt: skip


def usage() -> str:
    """The help of `metarl` itself."""
    commands = {"train NAME": "train, evaluate and record a run", **COMMANDS, "check": CHECK}
    return "\n".join(
        [
            "usage: metarl COMMAND ...\n\ncommands, each with a --help of its own:",
            *(f"  {name:<12} {help}" for name, help in commands.items()),
            f"\nNAME: {_shown(launchers())}",
        ]
    )


def _train(words: Sequence[str]) -> None:
    """Run the launcher that the first word names."""
    from metarl.experiments.runner.experiment import find_experiment
    from metarl.experiments.runner.training import main as train

    if not words or words[0] in ("--help", "-h"):
        print(
            f"usage: metarl train NAME [--recipe NAME] [flags that change its settings]\n\nNAME: {_shown(launchers())}"
        )
        return
    name, known = words[0].replace("-", "_"), launchers()
    if name not in known:
        raise SettingError(f"NAME = {words[0]!r}; allowed: {_shown(known)}{nearest(words[0], _dashed(known))}")
    sys.argv[0] = f"metarl train {words[0]}"
    train(find_experiment(name), words[1:])


def _dashed(names: Sequence[str]) -> list[str]:
    return [name.replace("_", "-") for name in names]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(_dashed(names))


if __name__ == "__main__":
    main()
