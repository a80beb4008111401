"""The command line of a run, made from the declarations of its settings; bad input gets one line and exit status 2."""

import argparse
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from metarl.core.distributed import local_rank
from metarl.core.settings import SettingError, check_value, declared, kind_of, nearest
from metarl.experiments.runner.experiment import Experiment
from metarl.experiments.runner.flat_settings import FlatSetting, flat_name, flat_settings

Plain = TypeVar("Plain")

_PATIENCE = 30.0  # seconds
_GROUPS = (
    "run and records",
    "method",
    "sampling",
    "inner loop",
    "outer loop",
    "policy",
    "environment",
    "evaluation",
    "machine",
)
_OTHER_NAMES = {  # former names of ours and those of other libraries: here those of these that a script has
    "--tasks": ("--num-tasks",),
    "--episodes": ("--episodes-per-task",),
    "--order": ("--second-order", "--no-second-order"),
    "--fomaml": ("--no-second-order",),
    "--first-order": ("--no-second-order",),
    "--later-factor": ("--extra-step-scale",),
    "--product-fraction": ("--hvp-sample-fraction",),
    "--num-steps": ("--inner-steps", "--steps"),
    "--inner-steps": ("--steps",),
    "--num-tasks": ("--tasks",),
    "--fast-lr": ("--inner-step-size",),
    "--inner-lr": ("--inner-step-size",),
    "--lr": ("--outer-step-size", "--learning-rate"),
    "--meta-lr": ("--outer-step-size", "--learning-rate"),
}


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Attributes:
        given: the settings that it names, by flat name.
        recipe: the recipe that it names, or an empty text.
        run_dir: where a new run goes; None for a directory named after the time.
        resume: the run to continue; None for a new one.
    """

    given: Mapping[str, Any]
    recipe: str = ""
    run_dir: Path | None = None
    resume: Path | None = None


def read(experiment: Experiment, arguments: Sequence[str]) -> Request:
    """Read the command line of an experiment's script; what the flags say is checked later, with all other settings."""
    parser = OneLineParser(experiment.description)
    parser.usage = "%(prog)s [--recipe NAME] [flags that change its settings] [--run-dir DIR]"
    defaults = experiment.values()
    parser.add_argument("--recipe", metavar="NAME", default="", help=_recipes_help(experiment))
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="new directory (default runs/NAME-seedN-TIME)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue this run, with its settings")
    settings = flat_settings(experiment.settings)
    found = {setting.group for setting in settings.values()}
    for heading in (*_GROUPS, *sorted(found.difference(_GROUPS))):
        group = parser.add_argument_group(heading)
        for name, setting in settings.items():
            if setting.group == heading:
                _add_flag(group, setting, defaults.get(name, setting.field.default))
    namespace = vars(parser.parse_args(arguments))
    request = {name: namespace.pop(name) for name in ("recipe", "run_dir", "resume")}
    if request["resume"] is not None:
        for name in ("recipe", "run_dir"):
            if request[name]:
                raise SettingError(f"--{name.replace('_', '-')} with --resume; allowed: one of the two")
    return Request(_given(namespace, settings), **request)


def read_plain(
    kind: type[Plain], arguments: Sequence[str], parser: "OneLineParser"
) -> tuple[argparse.Namespace, Plain]:
    """Read the command line of a script whose settings are one dataclass of declared settings.

    Args:
        kind: the dataclass; a flag is added to the parser for each of its settings.
        arguments: words of the command line.
        parser: with the flags that are no settings.

    Returns:
        the flags that are no settings, and the settings; SettingError for a value that is not allowed.
    """
    group = parser.add_argument_group("settings")
    settings = {flat_name(field): FlatSetting(flat_name(field), "", field, "") for field in declared(kind)}
    for setting in settings.values():
        _add_flag(group, setting, setting.field.default)
    namespace = parser.parse_args(arguments)
    given = _given(vars(namespace), settings)
    for name, value in given.items():
        check_value(settings[name].field, value, settings[name].flag)
    return namespace, kind(**{settings[name].field.name: value for name, value in given.items()})


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, exit status 2, with the nearest flag for an unknown one."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False, formatter_class=_Formatter)

    def error(self, message: str) -> NoReturn:
        """Print the line and leave."""
        if message.startswith("unrecognized arguments: "):
            unknown = message.removeprefix("unrecognized arguments: ").split()[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            ours = [flag for flag in _OTHER_NAMES.get(unknown.split("=")[0], ()) if flag in flags]
            hint = f"; here it is {' or '.join(ours)}" if ours else nearest(unknown, flags)
            message = f"unknown argument {unknown}{hint}; --help lists all"
        leave(2, message, patient=local_rank() > 0)


class _Formatter(argparse.HelpFormatter):
    """Wide lines, which are not broken at hyphens."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=min(130, shutil.get_terminal_size().columns - 2))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def leave(status: int, message: str, patient: bool = False) -> NoReturn:
    """Print one line and end the process.

    One of several processes is patient where others have more to say, or say the same: it waits, and torchrun ends it
    once another one has spoken and left.
    """
    if patient:
        time.sleep(_PATIENCE)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _given(namespace: dict[str, Any], settings: Mapping[str, FlatSetting]) -> dict[str, Any]:
    """Take the settings that a command line names out of what argparse has read."""
    given = {name: namespace.pop(name) for name in settings if name in namespace}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _recipes_help(experiment: Experiment) -> str:
    names = "; ".join(map(experiment.shown_name, experiment.recipes))
    default = experiment.shown_name(experiment.recipe_name(""))
    return f"named settings, which flags change (default {default}): {names}"


def _add_flag(group: Any, setting: FlatSetting, default: Any) -> None:
    kind, metadata = kind_of(setting.field), setting.field.metadata
    options: dict[str, Any] = {"dest": setting.name, "default": argparse.SUPPRESS, "help": _help(setting, default)}
    if kind.element is bool:
        group.add_argument(setting.flag, action=argparse.BooleanOptionalAction, **options)
        return
    metavar = "{" + ",".join(metadata["choices"]) + "}" if metadata["choices"] else kind.element.__name__.upper()
    reader = _reader(kind.element)
    group.add_argument(setting.flag, nargs="+" if kind.several else None, type=reader, metavar=metavar, **options)


def _help(setting: FlatSetting, default: Any) -> str:
    metadata = setting.field.metadata
    shown = " ".join(map(str, default)) or "none" if isinstance(default, tuple) else default
    notes = [f"default {'none' if shown is None else shown}", metadata["unit"], metadata["source"]]
    only = f"{', '.join(setting.variants)}: " if setting.variants else ""
    return f"{only}{metadata['help']} ({'; '.join(note for note in notes if note)})".replace("%", "%%")


def _reader(kind: type) -> Any:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            names = {int: "whole number", float: "number", str: "text"}
            raise argparse.ArgumentTypeError(f"{text!r} is no {names[kind]}") from None

    return read
