"""Torch's global modes that a caller may have switched on, as context managers by name."""

from contextlib import contextmanager

import torch


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default_dtype": lambda: default_dtype(torch.float64),
    "default_device": lambda: torch.device("meta"),
}
