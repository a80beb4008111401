"""The settings of device, threads and memory."""

import os

import pytest
import torch

from metarl import Learner
from metarl.core.settings import SettingError
from metarl.experiments import open_run
from metarl.experiments.runner import machine
from tests.experiments.runner.helpers import assert_same_run, train

CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs and this process as number 1 of as many processes as asked for."""

    def pretend(processes):
        monkeypatch.setenv("LOCAL_RANK", "1" if processes > 1 else "0")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return pretend


def test_every_process_takes_a_gpu_of_its_own(gpus):
    gpus(1)
    assert [machine.choose_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:0", "cuda:0", "cpu"]
    gpus(2)
    assert [machine.choose_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    gpus(3)
    with pytest.raises(SettingError, match="3 processes on 2 GPUs; allowed: one process per GPU, or --device cpu"):
        machine.choose_device("auto")


def test_processes_divide_the_cores(monkeypatch):
    assert machine.choose_threads(0) == CORES
    assert machine.choose_threads(3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun does
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(CORES))
    assert machine.choose_threads(0) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(100 * CORES))
    assert machine.choose_threads(0) == 1


def test_a_run_says_where_it_runs(tmp_path, capsys):
    train("--run-dir", tmp_path / "run")
    assert f"{tmp_path / 'run'}, on cpu (no GPU in use), 1 threads" in capsys.readouterr().out


@pytest.fixture
def little_memory(monkeypatch):
    """A device whose memory is enough for one task at a time, except in the first iteration."""
    step = Learner.step

    def limited(learner):
        metrics = step(learner) if learner.iteration == 0 or learner.task_chunk == 1 else None
        if metrics is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return metrics

    monkeypatch.setattr(Learner, "step", limited)


def test_a_device_without_memory_says_which_setting_to_lower(little_memory, tmp_path, capsys):
    directory = tmp_path / "run"
    with pytest.raises(SystemExit) as leaving:
        train("--run-dir", directory)
    assert leaving.value.code == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line == (
        "error: cpu is out of memory with 3 tasks at a time; lower --task-chunk, --num-tasks or the network; "
        "the last checkpoint is as it was"
    )
    assert open_run(directory)[2].iteration == 1


def test_chunks_shrink_when_asked_and_the_run_is_the_same(little_memory, tmp_path, capsys):
    train("--shrink-chunks", "--run-dir", tmp_path / "shrunk")
    told = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert told == [f"cpu is out of memory; now {size} tasks at a time" for size in (2, 1)]
    train("--task-chunk", 1, "--run-dir", tmp_path / "small")
    assert_same_run(tmp_path / "shrunk", tmp_path / "small")


def test_freed_memory_is_kept_where_the_c_library_can_be_told(monkeypatch):
    told = []

    class Library:
        def __init__(self, name):
            self.mallopt = lambda parameter, value: told.append((parameter, value))

    monkeypatch.setattr(machine.ctypes, "CDLL", Library)
    machine.keep_freed_memory()
    assert told == [(-1, 1 << 30), (-3, 1 << 30)]
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: object())
    machine.keep_freed_memory()  # another C library: nothing happens
