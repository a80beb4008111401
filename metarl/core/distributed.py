"""Several processes, on one machine or many, that divide the tasks of a meta-batch (torch.distributed).

`torchrun` starts them. Each steps and adapts to its own share of the tasks, whatever is a sum over tasks is reduced,
and so all of them take the same step and hold the same meta-parameters. Gloo carries tensors of the CPU, NCCL those of
GPUs.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # its defaults would keep a group that is there when it is first imported
from torch import Tensor

_PATIENCE = timedelta(minutes=10)  # until a process that waits for another gives up; a dead one is noticed at once


class LostProcessError(RuntimeError):
    """Another process of the run has ended, or does not answer."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them; what one does with all of them, all have to do.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> slice:
        """This process's part of `count` tasks: consecutive ones, in the order of ranks, as evenly as it goes."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, of the same bits on all of them; shaped as the values of each."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def most(self, value: int) -> int:
        """The largest value that a process has."""
        return int(self._reduce(torch.tensor(value), dist.ReduceOp.MAX))

    def join(self, own: Tensor, count: int) -> Tensor:
        """Values (count, ...) of all tasks, from those of each process's share; exact."""
        whole = own.new_zeros(count, *own.shape[1:])
        whole[self.share(count)] = own
        return self.sum(whole)

    def first(self, values: Tensor) -> Tensor:
        """The values of process 0."""
        if self.size == 1:
            return values
        received = values.clone()
        self._call(dist.broadcast, received, 0)
        return received

    def everyone(self, value: Any) -> list[Any]:
        """What each process has to say, by rank: plain data."""
        if self.size == 1:
            return [value]
        said: list[Any] = [None] * self.size
        self._call(dist.all_gather_object, said, value)
        return said

    def _reduce(self, values: Tensor, operation: Any) -> Tensor:
        if self.size == 1:
            return values
        reduced = values.clone()
        self._call(dist.all_reduce, reduced, operation)
        return reduced

    def _call(self, collective: Callable[..., Any], *arguments: Any) -> None:
        try:
            collective(*arguments)
        except RuntimeError as error:
            raise LostProcessError(
                f"process {self.rank} of {self.size} lost another one: {str(error).splitlines()[0]}"
            ) from error


ALONE = Processes()


def start(device: str) -> Processes:
    """Meet the processes that `torchrun` started together with this one; without torchrun it is alone.

    Args:
        device: where learning happens.

    Raises:
        ValueError: several processes on GPUs, without NCCL.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu and not dist.is_nccl_available():
            raise ValueError("several processes on GPUs, but this PyTorch has no NCCL; allowed: the device cpu")
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    return current()


def current() -> Processes:
    """All processes of torch.distributed's group, or this one alone where there is none."""
    return Processes(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


def end() -> None:
    """Part from the other processes, once there is nothing left to do together.

    The group's threads end with it: one that is alive when the interpreter ends may abort the process.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def local_rank() -> int:
    """Number of this process among those on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """How many processes of the run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
