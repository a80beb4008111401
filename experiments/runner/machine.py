"""The device and the threads of a process."""

import ctypes
import os
from contextlib import suppress

import torch

from metarl.core.distributed import local_rank, local_size
from metarl.core.settings import SettingError
from metarl.experiments.runner.settings import Settings

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, as in glibc's malloc.h


def choose_device(device: str) -> str:
    """Turn `auto` into what there is, one GPU for each process; SettingError where there are too few."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device = cuda, but no CUDA GPU is available; allowed here: auto, cpu")
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    gpus, processes = torch.cuda.device_count(), local_size()
    if processes > gpus:
        raise SettingError(f"{processes} processes on {gpus} GPUs; allowed: one process per GPU, or --device cpu")
    return f"cuda:{local_rank()}"


def choose_threads(threads: int) -> int:
    """Turn 0 into this process's part of the cores. (torchrun sets OMP_NUM_THREADS=1, which plays no part in it.)"""
    return threads or max(1, len(os.sched_getaffinity(0)) // local_size())


def keep_freed_memory() -> None:
    """Let the C library keep memory that is freed, up to 1 GB, for what is allocated next, instead of returning it.

    The graph of a chunk is tens of megabytes that come and go in every iteration; fetching them from the operating
    system page by page took a fifth of an iteration on Omniglot. It has no effect where the C library is not glibc.
    """
    with suppress(AttributeError, OSError):
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(parameter, 1 << 30)


def prepare_process(settings: Settings) -> str:
    """Set the memory, the threads, the device and the seed of PyTorch; return the device."""
    keep_freed_memory()
    device = choose_device(settings.machine.device)
    if device != "cpu":
        torch.cuda.set_device(device)
    torch.set_num_threads(choose_threads(settings.machine.threads))
    torch.manual_seed(settings.run.seed)
    return device
