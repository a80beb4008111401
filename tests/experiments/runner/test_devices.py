"""The settings of device, threads and memory."""

import os

import pytest
import torch

from metarl import Learner
from metarl.experiments import navigation_2d
from metarl.experiments.runner import settings
from metarl.experiments.runner.configuration import SettingError
from metarl.experiments.runner.starting import open_run
from metarl.experiments.runner.training import main
from tests.experiments.runner.test_command_line import TINY
from tests.experiments.runner.test_training import assert_same_run

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
    assert [settings.choose_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:0", "cuda:0", "cpu"]
    gpus(2)
    assert [settings.choose_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    gpus(3)
    with pytest.raises(SettingError, match="3 processes on 2 GPUs; allowed: one process per GPU, or --device cpu"):
        settings.choose_device("auto")


def test_processes_divide_the_cores(monkeypatch):
    assert settings.choose_threads(0) == CORES
    assert settings.choose_threads(3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun does
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(CORES))
    assert settings.choose_threads(0) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(100 * CORES))
    assert settings.choose_threads(0) == 1


def test_a_run_says_where_it_runs(tmp_path, capsys):
    main(navigation_2d.EXPERIMENT, [*TINY, "--run-dir", str(tmp_path / "run")])
    assert f"{tmp_path / 'run'}, on cpu (no GPU in use), 1 threads" in capsys.readouterr().out


@pytest.fixture
def little_memory(monkeypatch):
    """A device whose memory is enough for one task at a time, except in the first iteration."""
    step = Learner.step

    def limited(learner):
        figures = step(learner) if learner.iteration == 0 or learner.task_chunk == 1 else None
        if figures is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return figures

    monkeypatch.setattr(Learner, "step", limited)


def test_a_device_without_memory_says_which_setting_to_lower(little_memory, tmp_path, capsys):
    directory = tmp_path / "run"
    with pytest.raises(SystemExit) as leaving:
        main(navigation_2d.EXPERIMENT, [*TINY, "--run-dir", str(directory)])
    assert leaving.value.code == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line == (
        "error: cpu is out of memory with 3 tasks at a time; lower --task-chunk, --tasks or the network; "
        "the last checkpoint is as it was"
    )
    assert open_run(directory)[2].iteration == 1


def test_chunks_shrink_when_asked_and_the_run_is_the_same(little_memory, tmp_path, capsys):
    main(navigation_2d.EXPERIMENT, [*TINY, "--shrink-chunks", "--run-dir", str(tmp_path / "shrunk")])
    told = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert told == [f"cpu is out of memory; now {size} tasks at a time" for size in (2, 1)]
    main(navigation_2d.EXPERIMENT, [*TINY, "--task-chunk", "1", "--run-dir", str(tmp_path / "small")])
    assert_same_run(tmp_path / "shrunk", tmp_path / "small")


def test_task_chunks_reach_the_learner():
    run = navigation_2d.build(navigation_2d.NavigationSettings(task_chunk=3, threads=1))
    assert run.task_chunk == 3
    assert navigation_2d.build(navigation_2d.NavigationSettings(threads=1)).task_chunk is None
