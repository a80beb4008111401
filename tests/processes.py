"""Several processes that meet as those of `torchrun` do, for tests."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from metarl.core import distributed
from metarl.core.distributed import Processes


def run_in_processes(size: int, work: Callable[..., Any], *arguments: Any) -> None:
    """Call work(processes, *arguments) in so many processes of a group of their own; an error in one is one here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_serve, (size, port, work, arguments), nprocs=size)


def _serve(rank: int, size: int, port: int, work: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = distributed.start("cpu")
    assert processes == Processes(rank, size)
    work(processes, *arguments)
    distributed.end()
    threads = [name.read_text() for name in Path("/proc/self/task").glob("*/comm")]  # where there is a /proc
    assert not [name for name in threads if "gloo" in name], "the group's threads live on"
