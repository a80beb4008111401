"""Several processes, on one machine or many, that divide the tasks of a meta-batch (torch.distributed).

`torchrun` starts them. Each process samples and adapts to its own shard of the tasks, and every sum over tasks is
reduced over all of them, so all take the same step and hold the same meta-parameters. Gloo is the backend for tensors
on CPUs, NCCL for those on GPUs.
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

_TIMEOUT = timedelta(minutes=10)  # of a collective call; a process that has ended is noticed at once


class LostProcessError(RuntimeError):
    """Another process of the run has ended, or does not answer."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Every method but `shard` is collective: every rank must call it, in the same order.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    def shard(self, count: int) -> slice:
        """Return this rank's slice of `count` tasks: consecutive ones, whose numbers differ by one at most."""
        return slice(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over the ranks, the same bits on all of them, shaped as `values`."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def all_reduce_max(self, value: int) -> int:
        """Return the largest `value` of any rank."""
        return int(self._reduce(torch.tensor(value), dist.ReduceOp.MAX))

    def all_gather(self, own: Tensor, count: int) -> Tensor:
        """Return the values (count, ...) of all tasks from those of each rank's shard, exactly."""
        whole = own.new_zeros(count, *own.shape[1:])
        whole[self.shard(count)] = own
        return self.all_reduce_sum(whole)

    def broadcast(self, values: Tensor) -> Tensor:
        """Return the `values` of rank 0."""
        if self.world_size == 1:
            return values
        received = values.clone()
        self._call(dist.broadcast, received, 0)
        return received

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Return the `value` of each rank, plain data, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        self._call(dist.all_gather_object, values, value)
        return values

    def _reduce(self, values: Tensor, operation: Any) -> Tensor:
        if self.world_size == 1:
            return values
        reduced = values.clone()
        self._call(dist.all_reduce, reduced, operation)
        return reduced

    def _call(self, collective: Callable[..., Any], *arguments: Any) -> None:
        try:
            collective(*arguments)
        except RuntimeError as error:
            raise LostProcessError(
                f"process {self.rank} of {self.world_size} lost another one: {str(error).splitlines()[0]}"
            ) from error


ALONE = Processes()


def start(device: str) -> Processes:
    """Join the processes that `torchrun` started together with this one; without torchrun it is alone.

    Args:
        device: where learning happens.

    Raises:
        ValueError: several processes on GPUs, without NCCL.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu and not dist.is_nccl_available():
            raise ValueError("several processes on GPUs, but this PyTorch has no NCCL; allowed: the device cpu")
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_TIMEOUT)
    return current()


def current() -> Processes:
    """All processes of torch.distributed's group, or this one alone where there is none."""
    return Processes(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


def end() -> None:
    """Leave the process group, once there is no collective call left to make.

    This ends the group's threads: one that is alive when the interpreter ends may abort the process.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def local_rank() -> int:
    """Number of this process among those on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """How many processes of the run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
