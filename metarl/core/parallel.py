"""Chunks of tasks side by side on a CPU: as many threads as torch has, each with mathematics of one thread.

Threads within an operation wait for each other after every one of the many short operations of a meta-gradient; threads
of their own chunks never wait. What a chunk computes is the same on any number of threads, to the last bit.
"""

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn

Item = TypeVar("Item")
Result = TypeVar("Result")

_worker = threading.local()


def task_chunks(tasks: int, size: int, workers: int = 1) -> list[slice]:
    """Cut M tasks into consecutive slices of at most `size`, alike in length.

    Their number is a multiple of `workers`, which take equal shares then, but for more slices than `size` needs each
    must have two tasks: matrix products may round a single one otherwise.
    """
    rounds = -(-tasks // (size * workers))
    count = min(rounds * workers, max(-(-tasks // size), tasks // 2))
    return [slice(tasks * i // count, tasks * (i + 1) // count) for i in range(count)]


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], device: torch.device | str = "cpu"
) -> list[Result]:
    """[function(item) for item in items], side by side; a function that calls a module calls its `own_copy`.

    A single item, too, has one thread: some operations round differently on several. A device other than the CPU takes
    one item after the other: there, chunks are for memory that cannot hold them all.
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
    """How many items `parallel_map` takes side by side."""
    return torch.get_num_threads() if torch.device(device).type == "cpu" else 1


def own_copy(module: nn.Module) -> nn.Module:
    """The module; on a thread of `parallel_map` a copy of its own, as a functional call swaps the module's tensors."""
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
