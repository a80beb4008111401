"""Wall time by phase, with a clock that the test moves."""

import time

import pytest

from metarl.core.timing import PhaseTimer


@pytest.fixture
def clock(monkeypatch):
    readings = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: readings[0])
    return readings


def test_phases_of_one_name_add_up(clock):
    timer = PhaseTimer("cpu")
    assert timer.seconds == {}
    for name, seconds in (("rollout", 2.0), ("adapt", 0.5), ("rollout", 3.0)):
        with timer.phase(name):
            clock[0] += seconds
        clock[0] += 100.0  # between phases nothing counts
    assert timer.seconds == {"rollout": 5.0, "adapt": 0.5}


def test_a_phase_waits_for_the_gpu_at_both_ends(clock, monkeypatch):
    waited = []
    monkeypatch.setattr("torch.cuda.synchronize", waited.append)
    with PhaseTimer("cuda:1").phase("update"):
        assert len(waited) == 1
    assert [str(device) for device in waited] == ["cuda:1", "cuda:1"]
