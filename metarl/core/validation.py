"""Checks of arguments; a refusal is one line with the name, the value and what is allowed."""

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

_LONGEST = 200  # characters of a value in a message


def require(holds: bool, name: str, value: Any, allowed: str) -> None:
    """Raise ValueError, with the name, the value and what is allowed, unless `holds`."""
    if not holds:
        raise ValueError(f"{name} = {in_short(value)}; allowed: {allowed}")


def in_short(value: Any) -> str:
    """The value as Python writes it where that fits into a line, else its type."""
    text = repr(value)
    return text if len(text) <= _LONGEST and "\n" not in text else f"a {type(value).__name__}"


def require_one_of(choices: Collection[str], name: str, value: str) -> None:
    """Raise ValueError unless the value is one of the choices."""
    require(value in choices, name, value, ", ".join(choices))


def require_positive(name: str, value: float) -> None:
    """Raise ValueError unless the value is a number, positive and finite."""
    require(isinstance(value, Real) and 0 < value < math.inf, name, value, "more than 0")


def require_part(name: str, part: Any, has: str, example: str) -> None:
    """Raise ValueError unless `part` is an object, not a class, that has the attribute `has`."""
    require(hasattr(part, has) and not isinstance(part, type), name, part, f"one such as {example}")


def require_whole(name: str, value: int, at_least: int = 1) -> None:
    """Raise ValueError unless the value is a whole number, at least `at_least`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    require(whole and value >= at_least, name, value, f"a whole number, at least {at_least}")
