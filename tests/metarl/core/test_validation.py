"""Checks of arguments: what passes, and that a refusal names the argument and its value in one line."""

import math

import numpy as np
import pytest

from metarl.core import validation


class Part:
    def update(self):
        pass


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (validation.require, (True, "x", 1, "anything")),
        (validation.require_one_of, (("a", "b"), "x", "b")),
        (validation.require_positive, ("x", 1e-300)),
        (validation.require_part, ("x", Part(), "update", "Part()")),
        (validation.require_whole, ("x", 1)),
        (validation.require_whole, ("x", np.int64(0), 0)),
    ],
)
def test_what_is_allowed_passes(check, arguments):
    assert check(*arguments) is None


@pytest.mark.parametrize(
    ("check", "arguments", "start"),
    [
        (validation.require, (False, "x", 1, "2"), "x = 1; allowed: 2"),
        (validation.require_one_of, (("a", "b"), "x", "c"), "x = 'c'; allowed: a, b"),
        (validation.require_positive, ("x", 0.0), "x = 0.0; "),
        (validation.require_positive, ("x", math.inf), "x = inf; "),
        (validation.require_part, ("x", Part, "update", "Part()"), "x = <class "),
        (validation.require_part, ("x", 3, "update", "Part()"), "x = 3; "),
        (validation.require_whole, ("x", 0), "x = 0; "),
        (validation.require_whole, ("x", 2.0), "x = 2.0; "),
    ],
)
def test_what_is_not_is_named_in_one_line(check, arguments, start):
    with pytest.raises(ValueError, match=" = ") as caught:
        check(*arguments)
    assert str(caught.value).startswith(start)
    assert len(str(caught.value).splitlines()) == 1
