"""Torch's global modes: switched off inside, and as they were afterwards."""

import pytest
import torch

from metarl.core.ambient import in_standard_modes, standard_modes
from tests.modes import MODES, default_dtype


def modes():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device().type,
    )


STANDARD = (True, False, False, torch.float32, "cpu")


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_standard_inside_and_as_they_were_afterwards(mode):
    with MODES[mode]():
        before = modes()
        assert before != STANDARD
        with standard_modes():
            assert modes() == STANDARD
            value = torch.ones(2, requires_grad=True)
            assert (value @ value).requires_grad
        assert modes() == before
        assert in_standard_modes(modes)() == STANDARD
        assert modes() == before


def test_modes_come_back_after_an_error():
    def fail():
        raise ZeroDivisionError

    with default_dtype(torch.float64), torch.no_grad():
        before = modes()
        with pytest.raises(ZeroDivisionError):
            in_standard_modes(fail)()
        assert modes() == before


def test_a_decorated_function_keeps_its_name_and_arguments():
    @in_standard_modes
    def add(a, b=2):
        """Sum."""
        return a + b

    assert (add(1), add(1, b=3), add.__name__, add.__doc__) == (3, 4, "add", "Sum.")
