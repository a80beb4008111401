"""Run library code in torch's standard modes, whatever the caller has set: no_grad, autocast, default dtype, device."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextmanager
def standard_modes() -> Iterator[None]:
    """Run the body with gradients on, in float32 and on explicit devices, without inference mode and autocast.

    So `torch.no_grad`, `torch.inference_mode`, `torch.autocast`, `torch.set_default_dtype` and
    `torch.set_default_device` of the caller change nothing inside; they are as they were afterwards.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def in_standard_modes(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function so that it always runs in `standard_modes`."""

    @wraps(function)
    def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        with standard_modes():
            return function(*arguments, **named)

    return run
