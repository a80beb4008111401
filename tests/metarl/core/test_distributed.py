"""Processes: shards, collective calls, and what is said when one is lost."""

import pytest
import torch

from metarl.core import distributed
from metarl.core.distributed import ALONE, LostProcessError, Processes
from tests.processes import run_in_processes

COUNT = 5  # which no number of processes here divides


def check_collectives(processes):
    rank, size = processes.rank, processes.world_size
    values = torch.randn(1000, generator=torch.Generator().manual_seed(rank))
    everyone = [torch.randn(1000, generator=torch.Generator().manual_seed(r)) for r in range(size)]
    total = processes.all_reduce_sum(values)
    torch.testing.assert_close(total, torch.stack(everyone).sum(0))
    assert len(set(processes.all_gather_objects(tuple(total.tolist())))) == 1
    assert torch.equal(processes.all_reduce_sum(values), total)
    assert torch.equal(values, everyone[rank])
    assert processes.all_reduce_max(10 - rank) == 10
    assert torch.equal(processes.broadcast(values), everyone[0])
    own = torch.arange(COUNT)[processes.shard(COUNT)].float().exp()
    assert torch.equal(processes.all_gather(own, COUNT), torch.arange(COUNT).float().exp())
    assert processes.all_gather_objects({"rank": rank}) == [{"rank": r} for r in range(size)]
    assert processes.all_reduce_sum(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_collective_calls_give_every_rank_the_same(size):
    run_in_processes(size, check_collectives)


@pytest.mark.parametrize(("count", "size"), [(7, 3), (40, 16), (3, 3), (2, 5)])
def test_shards_are_even_and_cover_everything_once(count, size):
    shards = [Processes(rank, size).shard(count) for rank in range(size)]
    assert [task for shard in shards for task in range(count)[shard]] == list(range(count))
    sizes = [shard.stop - shard.start for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_a_process_alone_needs_no_engine(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.start("cpu") == ALONE
    values = torch.randn(3)
    assert ALONE.all_reduce_sum(values) is values
    assert ALONE.broadcast(values) is values
    assert (ALONE.all_reduce_max(4), ALONE.all_gather_objects("x")) == (4, ["x"])
    assert torch.equal(ALONE.all_gather(values, 3), values)


def test_gpus_without_nccl_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(ValueError, match="NCCL"):
        distributed.start("cuda:1")


def test_a_lost_process_is_one_line(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("Connection closed by peer\nmore")

    monkeypatch.setattr(torch.distributed, "all_reduce", broken)
    with pytest.raises(LostProcessError, match=r"^process 1 of 2 lost another one: Connection closed by peer$"):
        Processes(1, 2).all_reduce_sum(torch.zeros(2))
