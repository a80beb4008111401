"""Settings that are declared once: what is declared, what is allowed, and what is refused by name."""

import math
from dataclasses import dataclass, fields

import numpy as np
import pytest

from metarl.core.settings import SettingError, allowed_values, check_settings, declared, kind_of, nearest, setting


@dataclass(frozen=True)
class Example:
    share: float = setting(0.5, "a share", unit="nats", source="paper", more_than=0, at_most=1, changeable=True)
    count: int = setting(3, "a number", at_least=2, flag="number")
    limit: float | None = setting(None, "a limit", at_least=1)
    active: bool = setting(False, "whether")
    name: str = setting("first", "which", choices=("first", "second"))
    sizes: tuple[int, ...] = setting((4, 5), "sizes", at_least=1)
    other: object = None

    def __post_init__(self):
        check_settings(self)


FIELDS = {field.name: field for field in fields(Example)}


def test_declared_fields_carry_what_was_said_of_them():
    assert [field.name for field in declared(Example)] == [name for name in FIELDS if name != "other"]
    metadata = FIELDS["share"].metadata
    assert (metadata["help"], metadata["unit"], metadata["source"]) == ("a share", "nats", "paper")
    assert (metadata["changeable"], FIELDS["count"].metadata["changeable"]) == (True, False)
    assert (FIELDS["count"].metadata["flag"], FIELDS["share"].metadata["flag"]) == ("number", "")
    assert Example() == Example(0.5, 3, None, False, "first", (4, 5))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("share", (float, False, False)),
        ("limit", (float, False, True)),
        ("active", (bool, False, False)),
        ("sizes", (int, True, False)),
    ],
)
def test_kinds_are_read_from_the_annotation(name, expected):
    kind = kind_of(FIELDS[name])
    assert (kind.element, kind.several, kind.optional) == expected


def test_a_setting_of_another_type_is_a_mistake_of_the_program():
    @dataclass
    class Wrong:
        mapping: dict = setting(None, "no setting")

    with pytest.raises(TypeError, match="mapping"):
        kind_of(fields(Wrong)[0])


@pytest.mark.parametrize(
    "values",
    [
        {"share": 1},
        {"share": np.float32(0.25)},
        {"count": np.int64(2)},
        {"limit": 1.0},
        {"limit": None},
        {"name": "second"},
        {"sizes": ()},
    ],
)
def test_values_at_their_bounds_and_numbers_of_numpy_are_allowed(values):
    found = Example(**values)
    [(name, value)] = values.items()
    assert getattr(found, name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("share", 0.0),
        ("share", 1.01),
        ("share", math.nan),
        ("share", math.inf),
        ("share", "0.5"),
        ("share", True),
        ("share", None),
        ("count", 1),
        ("count", 2.0),
        ("count", True),
        ("limit", 0.5),
        ("active", 1),
        ("active", "yes"),
        ("name", "third"),
        ("name", 1),
        ("sizes", [4, 5]),
        ("sizes", 4),
        ("sizes", (4, 0)),
        ("sizes", (4, 0.5)),
    ],
)
def test_another_value_is_refused_in_one_line_with_its_name(name, value):
    with pytest.raises(SettingError, match=rf"^{name} = ") as caught:
        Example(**{name: value})
    assert repr(value) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_setting_error_is_a_value_error():
    assert issubclass(SettingError, ValueError)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("share", "more than 0 and at most 1"),
        ("count", "a whole number, at least 2"),
        ("active", "True or False"),
        ("name", "first, second"),
        ("sizes", "a whole number, at least 1"),
    ],
)
def test_what_is_allowed_is_said_in_words(name, words):
    assert allowed_values(FIELDS[name]) == words


def test_the_nearest_choice_is_named_where_one_is_near():
    assert nearest("secnod", ["first", "second"]).endswith("second")
    assert nearest("xyz", ["first", "second"]) == ""
    with pytest.raises(SettingError, match="the nearest is second"):
        Example(name="secnod")
