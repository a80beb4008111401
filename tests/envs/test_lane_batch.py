"""The engine for MuJoCo before 3.17, which must be exact on every version; and its speed."""

import time

import mujoco
import numpy as np
import pytest

from metarl import envs
from metarl.envs import lane_batch, mujoco_batch
from tests.envs.mujoco_oracle import DYNAMICS, assert_batches_equal_lanes


@pytest.mark.filterwarnings("ignore:threads = ")
@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("distribution", [envs.HalfCheetahVelocity, envs.AntGoal])
def test_lanes_equal_mj_step(distribution, dynamics, monkeypatch):
    monkeypatch.setattr(mujoco_batch, "Batch", lane_batch.Batch)
    assert_batches_equal_lanes(distribution(dynamics=dynamics, horizon=10_000), (1, 3), steps=30, num_envs=16)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(mujoco, "batch"), reason="nothing to compare with before MuJoCo 3.17")
@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("distribution", [envs.HalfCheetahDirection, envs.AntDirection])
def test_steps_per_second_against_the_batch(distribution, dynamics, monkeypatch, capsys):
    """100 lanes on one thread; medians of turns, in time of the processor."""
    distribution = distribution(dynamics=dynamics, horizon=10_000)
    batches = []
    for kind in (lane_batch.Batch, mujoco.batch.Batch):
        monkeypatch.setattr(mujoco_batch, "Batch", kind)
        batches.append(distribution.make(100))
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 100, *distribution.action_space.shape))

    def seconds(batch):
        batch.reset(seed=0)
        start = time.process_time()
        for action in actions:
            batch.step(action)
        return time.process_time() - start

    turns = np.array([[seconds(batch) for batch in batches] for _ in range(7)])
    ratio = np.median(turns[:, 1]) / np.median(turns[:, 0])
    with capsys.disabled():
        print(f"\n{distribution.name}, {dynamics}: {ratio:.2f} of the batch's steps per second")
    assert ratio > 0.2
