"""Chunks of tasks, computed side by side on a CPU: one Python thread per chunk, whose operations use one core each.

This is faster than torch's own threads, which must wait for each other after every one of the many short operations of
a meta-gradient. The result of a chunk is the same on any number of threads, to the last bit.
"""

import copy
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn

Item = TypeVar("Item")
Result = TypeVar("Result")

_worker = threading.local()

if hasattr(os, "register_at_fork"):
    # OpenMP's threads do not survive a fork. A child would wait for them for ever, so it computes on one thread.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def task_chunks(tasks: int, size: int, workers: int = 1) -> list[slice]:
    """Cut M tasks into consecutive slices of at most `size`, whose lengths differ by one at most.

    The number of slices is a multiple of `workers`, so that all have equally much to do. But where `size` alone would
    need fewer slices, every slice keeps at least two tasks, because matrix products may round a single one otherwise.

    Args:
        tasks: M.
        size: the most tasks of a slice.
        workers: number of threads.
    """
    rounds = -(-tasks // (size * workers))
    count = min(rounds * workers, max(-(-tasks // size), tasks // 2))
    return [slice(tasks * i // count, tasks * (i + 1) // count) for i in range(count)]


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], device: torch.device | str = "cpu"
) -> list[Result]:
    """Return [function(item) for item in items], computed side by side on a CPU.

    A function that calls a module must call its `own_copy`. A single item is computed on one core as well, because some
    operations round differently on several. On other devices the items are computed one after the other; there, chunks
    serve to save memory.

    Args:
        function: of one item.
        items: such as slices of tasks.
        device: where the function computes.
    """
    threads = workers(device)
    if threads == 1:
        return [function(item) for item in items]
    torch.set_num_threads(1)
    try:
        if len(items) == 1:
            return [function(items[0])]
        with ThreadPoolExecutor(min(threads, len(items)), initializer=_start) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)


def workers(device: torch.device | str) -> int:
    """Return the number of items that `parallel_map` computes at the same time."""
    return torch.get_num_threads() if torch.device(device).type == "cpu" else 1


def own_copy(module: nn.Module) -> nn.Module:
    """Return the module or, on a thread of `parallel_map`, that thread's copy of it.

    A functional call replaces the tensors of a module while it runs, so two threads cannot share one.
    """
    copies = getattr(_worker, "copies", None)
    if copies is None:
        return module
    if module not in copies:
        try:
            copies[module] = copy.deepcopy(module)
        except Exception as error:
            name = type(module).__name__
            raise TypeError(f"{name} has no copy for a second thread ({error}); allowed: one thread") from error
    return copies[module]


def _start() -> None:
    torch.set_num_threads(1)
    _worker.copies = {}
