"""One typed, frozen configuration per experiment, and the command line that is made from it."""

import argparse
import dataclasses
import difflib
import json
import math
import sys
import time
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from metarl.core.distributed import local_rank

Configuration = TypeVar("Configuration")

_PATIENCE = 30.0  # seconds


class SettingError(ValueError):
    """A setting that cannot be used; the message is one line: its name, its value and what is allowed."""


def setting(
    default: Any,
    help: str,
    *,
    source: str = "",
    unit: str = "",
    more_than: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: Sequence[str] = (),
    changeable: bool | tuple[str, ...] = False,
    only: tuple[str, ...] = (),
) -> Any:
    """Declare a field of a configuration.

    Args:
        default: its value when no flag is given; None, of an optional field, where it then plays no part.
        help: its meaning, one sentence.
        source: where the default comes from.
        unit: of the value, where it has one.
        more_than, at_least, at_most: bounds of a number, or of each number in a tuple.
        choices: all allowed texts.
        changeable: whether a resumed run may use another value; or the name of another setting, and the values of it
            with which it may.
        only: the name of another setting, and the values of it with which this one has an effect.
    """
    described = {"source": source, "unit": unit, "choices": choices, "changeable": changeable, "only": only}
    bounds = {"more_than": more_than, "at_least": at_least, "at_most": at_most}
    text = f"{', '.join(only[1:])}: {help}" if only else help
    return dataclasses.field(default=default, metadata={"help": text, **described, **bounds})


def with_default(kind: type, name: str, default: Any, source: str) -> Any:
    """Declare the field of a base configuration again, with another default that comes from `source`."""
    [field] = [field for field in dataclasses.fields(kind) if field.name == name]
    return dataclasses.field(default=default, metadata={**field.metadata, "source": source})


def check_settings(configuration: Any) -> None:
    """Raise SettingError for the first field whose value is not allowed."""
    for field in dataclasses.fields(configuration):
        value = getattr(configuration, field.name)
        allowed = _allowed(field)
        numbers = value if isinstance(value, tuple) else (value,)
        if field.metadata["choices"] and value not in field.metadata["choices"]:
            raise SettingError(f"{_flag(field.name)} = {value!r}; allowed: {allowed}{_nearest(value, field)}")
        if isinstance(value, tuple) and not value:
            raise SettingError(f"{_flag(field.name)} is empty; allowed: one or more numbers, each {allowed}")
        if any(not _within(number, field) for number in numbers):
            shown = " ".join(map(str, numbers))
            raise SettingError(f"{_flag(field.name)} = {shown}; allowed: {allowed}")


def parse(
    kind: type[Configuration], arguments: Sequence[str], parser: argparse.ArgumentParser, base: dict[str, Any]
) -> tuple[argparse.Namespace, Configuration]:
    """Read a command line.

    Args:
        kind: the dataclass to fill; one flag is added to the parser for each of its fields.
        arguments: the words of the command line.
        parser: with the flags that are no settings.
        base: values that replace the dataclass's defaults, as when a run is resumed.

    Returns:
        the flags that are no settings, and the checked configuration.
    """
    group = parser.add_argument_group("settings")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        _add_flag(group, field)
    namespace = parser.parse_args(arguments)
    given = {
        field.name: vars(namespace).pop(field.name)
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.name in namespace
    }
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    configuration = kind(**{**base, **given})
    check_settings(configuration)
    _check_effects(configuration, given)
    return namespace, configuration


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, exit status 2, with the nearest flag for an unknown one."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print the line and leave."""
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        if message.startswith("unrecognized arguments"):
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(unknown, flags, n=1, cutoff=0.4)
            hint = f"the nearest is {near[0]}; " if near else ""
            message = f"unknown argument {unknown}; {hint}--help lists all"
        leave(2, message, patient=local_rank() > 0)


def leave(status: int, message: str, patient: bool = False) -> NoReturn:
    """Print one line and end the process.

    One of several processes is patient where others have more to say, or say the same: it waits, and torchrun ends it
    once another one has spoken and left.
    """
    if patient:
        time.sleep(_PATIENCE)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def to_json(configuration: Any) -> dict[str, Any]:
    """The settings as plain data; the inverse of `from_json`."""
    return json.loads(json.dumps(dataclasses.asdict(configuration)))


def _check_effects(configuration: Any, given: Iterable[str]) -> None:
    """Raise SettingError for the first given setting that has no effect with the others."""
    for field in dataclasses.fields(configuration):
        if field.name in given and field.metadata["only"]:
            owner, *values = field.metadata["only"]
            if (chosen := getattr(configuration, owner)) not in values:
                raise SettingError(
                    f"{_flag(field.name)} has no effect with {_flag(owner)} {chosen}; allowed with: {', '.join(values)}"
                )


def from_json(kind: type[Configuration], values: Any) -> Configuration:
    """Settings from plain data; SettingError for an unknown or unusable one."""
    if not isinstance(values, dict):
        raise SettingError("there are no settings in it")
    types: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(types)):
        raise SettingError(f"unknown setting {unknown[0]}; allowed: {', '.join(sorted(types))}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in values.items():
        wanted, several, optional = _kind(types[name])
        if value is None and optional:
            continue
        kinds = (int, float) if wanted is float else (wanted,)
        parts = value if several and isinstance(value, tuple) else (value,)
        if any(type(part) not in kinds for part in parts):
            raise SettingError(f"{_flag(name)} = {value!r}; allowed: {wanted.__name__}")
    configuration = kind(**values)
    check_settings(configuration)
    return configuration


def output_file(named: Path | None, usual: Path) -> Path:
    """Where a result goes, looked at before any work is done; SettingError if it cannot go there.

    Args:
        named: by the user, whose file may be replaced, except those that a run keeps in its directory.
        usual: where nothing is named, which must be free.
    """
    path = named or usual
    if path.is_dir() or not path.parent.is_dir():
        raise SettingError(f"--output = {path}; allowed: a file in a folder that exists")
    if named is not None and path.exists() and (path.parent / "config.json").exists():
        raise SettingError(f"--output = {path} is a file of a run; allowed: a name that is free there")
    if named is None and path.exists():
        raise SettingError(f"{path} is there already; allowed: --output FILE")
    return path


def output_folder(path: Path) -> Path:
    """Where results go, looked at before any work is done; SettingError if there can be no folder."""
    found = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not found.is_dir():
        raise SettingError(f"--output = {path}; allowed: a folder")
    return path


def _add_flag(group: Any, field: dataclasses.Field) -> None:
    kind, repeated, _ = _kind(field.type)
    assert isinstance(kind, type), f"{field.name}: unsupported type"
    default: typing.Any = field.default
    shown = " ".join(map(str, default)) if repeated else "none" if default is None else default
    notes = [f"default {shown}", field.metadata["unit"], _allowed(field), field.metadata["source"]]
    options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    text = f"{field.metadata['help']} ({'; '.join(note for note in notes if note)})".replace("%", "%%")
    if kind is bool:
        group.add_argument(_flag(field.name), action=argparse.BooleanOptionalAction, help=text, **options)
        return
    reader = _reader(kind)
    options |= {"type": reader, "metavar": kind.__name__.upper(), "help": text}
    group.add_argument(_flag(field.name), nargs="+" if repeated else None, **options)


def _kind(declared: Any) -> tuple[Any, bool, bool]:
    """Of a type such as int, tuple[int, ...] or float | None: that of one value, whether several, whether optional."""
    [one, *others] = typing.get_args(declared) or [declared]
    return one, typing.get_origin(declared) is tuple, type(None) in others


def _reader(kind: type) -> Any:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {_NAMES[kind]}") from None

    return read


_NAMES = {int: "whole number", float: "number", str: "text"}


def _within(value: Any, field: dataclasses.Field) -> bool:
    if value is None or isinstance(value, str | bool):
        return True
    low, least, most = (field.metadata[name] for name in ("more_than", "at_least", "at_most"))
    return (
        math.isfinite(value)
        and (low is None or value > low)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )


def _allowed(field: dataclasses.Field) -> str:
    if field.metadata["choices"]:
        return ", ".join(field.metadata["choices"])
    words = {"more_than": "more than", "at_least": "at least", "at_most": "at most"}
    found = [f"{word} {field.metadata[name]:g}" for name, word in words.items() if field.metadata[name] is not None]
    return " and ".join(found)


def _nearest(value: Any, field: dataclasses.Field) -> str:
    near = difflib.get_close_matches(str(value), field.metadata["choices"], n=1)
    return f"; the nearest is {near[0]}" if near else ""


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
