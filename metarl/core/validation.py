"""Checks of arguments; a refusal is one line with the name, the value and what is allowed."""

import math
from collections.abc import Collection
from numbers import Integral
from typing import Any


def require(holds: bool, name: str, value: Any, allowed: str) -> None:
    """Raise ValueError, with the name, the value and what is allowed, unless `holds`."""
    if not holds:
        raise ValueError(f"{name} = {value!r}; allowed: {allowed}")


def require_one_of(choices: Collection[str], name: str, value: str) -> None:
    """Raise ValueError unless the value is one of the choices."""
    require(value in choices, name, value, ", ".join(choices))


def require_positive(name: str, value: float) -> None:
    """Raise ValueError unless the value is positive and finite."""
    require(0 < value < math.inf, name, value, "more than 0")


def require_part(name: str, part: Any, has: str, example: str) -> None:
    """Raise ValueError unless `part` is an object, not a class, that has the attribute `has`."""
    require(hasattr(part, has) and not isinstance(part, type), name, part, f"one such as {example}")


def require_whole(name: str, value: int, at_least: int = 1) -> None:
    """Raise ValueError unless the value is a whole number, at least `at_least`."""
    require(isinstance(value, Integral) and value >= at_least, name, value, f"a whole number, at least {at_least}")
