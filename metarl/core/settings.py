"""Settings: fields of frozen dataclasses whose default, meaning, unit and bounds are declared once, side by side.

The dataclasses of the library (rules, outer optimisers, sampling, ...) declare their fields with `setting` and call
`check_settings` in `__post_init__`. Command lines, help texts and JSON files are made from the same declarations.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any, TypedDict, Unpack


class SettingError(ValueError):
    """A setting that cannot be used; the message is one line: its name, its value and what is allowed."""


class Declaration(TypedDict, total=False):
    """What may be declared of a setting beside its default and its meaning.

    Attributes:
        unit: of the value, where it has one.
        source: where the default comes from, where that says something.
        more_than, at_least, at_most: bounds of a number, or of each number in a tuple.
        choices: all allowed texts.
        flag: the name of its command-line flag, where the field's own name would not be clear without its class.
        changeable: whether a resumed run may use another value.
    """

    unit: str
    source: str
    more_than: float | None
    at_least: float | None
    at_most: float | None
    choices: tuple[str, ...]
    flag: str
    changeable: bool


_UNDECLARED: Declaration = {
    "unit": "",
    "source": "",
    "more_than": None,
    "at_least": None,
    "at_most": None,
    "choices": (),
    "flag": "",
    "changeable": False,
}


def setting(default: Any, help: str, **declaration: Unpack[Declaration]) -> Any:
    """Declare a field of a dataclass of settings.

    Args:
        default: its value when none is given.
        help: its meaning, in one phrase.
        declaration: see `Declaration`.
    """
    return dataclasses.field(default=default, metadata={"help": help, **_UNDECLARED, **declaration})


def declared(kind: Any) -> list[dataclasses.Field]:
    """Return the fields of a dataclass, or of an instance, that were declared with `setting`."""
    return [field for field in dataclasses.fields(kind) if "help" in field.metadata]


def check_settings(instance: Any) -> None:
    """Raise SettingError for the first declared field whose value is of another type or out of bounds."""
    for field in declared(instance):
        check_value(field, getattr(instance, field.name), field.name)


def check_value(field: dataclasses.Field, value: Any, name: str) -> None:
    """Raise SettingError, which calls the field by this name, if it cannot take the value."""
    kind = kind_of(field)
    if value is None and kind.optional:
        return
    if kind.several and not isinstance(value, tuple):
        raise SettingError(f"{name} = {value!r}; allowed: a tuple, each element {allowed_values(field)}")
    for part in value if kind.several else (value,):
        if not _is_allowed(part, field, kind.element):
            hint = nearest(str(value), field.metadata["choices"])
            raise SettingError(f"{name} = {value!r}; allowed: {allowed_values(field)}{hint}")


@dataclasses.dataclass(frozen=True)
class Kind:
    """The type of a field: `element` of each value; whether it is a tuple of them (`several`), or may be None."""

    element: type
    several: bool
    optional: bool


def kind_of(field: dataclasses.Field) -> Kind:
    """Return the type of a field declared as bool, int, float or str, tuple[T, ...], or one of these or None."""
    declared_type: Any = field.type
    optional = isinstance(declared_type, types.UnionType) and type(None) in typing.get_args(declared_type)
    if optional:
        [declared_type] = [part for part in typing.get_args(declared_type) if part is not type(None)]
    several = typing.get_origin(declared_type) is tuple
    element = typing.get_args(declared_type)[0] if several else declared_type
    if element not in (bool, int, float, str):
        raise TypeError(f"{field.name}: a setting of type {field.type}; allowed: bool, int, float or str, or a tuple")
    return Kind(element, several, optional)


def allowed_values(field: dataclasses.Field) -> str:
    """Say in words what values a field takes."""
    metadata, element = field.metadata, kind_of(field).element
    if metadata["choices"]:
        return ", ".join(metadata["choices"])
    words = {"more_than": "more than", "at_least": "at least", "at_most": "at most"}
    bounds = [f"{word} {metadata[name]:g}" for name, word in words.items() if metadata[name] is not None]
    kinds = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}
    if element is float and bounds:
        return " and ".join(bounds)
    return ", ".join([kinds[element], *[" and ".join(bounds)] * bool(bounds)])


def nearest(value: str, known: Collection[str]) -> str:
    """Return `; the nearest is X` for the known name that is most like a value, or an empty text if none is like it."""
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.4)
    return f"; the nearest is {near[0]}" if near else ""


def _is_allowed(value: Any, field: dataclasses.Field, element: type) -> bool:
    metadata = field.metadata
    if element is bool:
        return isinstance(value, bool)
    if element is str:
        return isinstance(value, str) and (not metadata["choices"] or value in metadata["choices"])
    numbers = Integral if element is int else Real
    if isinstance(value, bool) or not isinstance(value, numbers) or not math.isfinite(value):
        return False
    low, least, most = (metadata[name] for name in ("more_than", "at_least", "at_most"))
    return (low is None or value > low) and (least is None or value >= least) and (most is None or value <= most)
