"""The engine for MuJoCo before 3.17, which must be exact on every version; and its speed."""

import pytest

import envs
from envs import lane_batch, mujoco_batch
from tests.envs.mujoco_oracle import DYNAMICS, assert_batches_equal_lanes


@pytest.mark.filterwarnings("ignore:threads = ")
@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("distribution", [envs.HalfCheetahVelocity, envs.AntGoal])
def test_lanes_equal_mj_step(distribution, dynamics, monkeypatch):
    monkeypatch.setattr(mujoco_batch, "Batch", lane_batch.Batch)
    assert_batches_equal_lanes(distribution(dynamics=dynamics, horizon=10_000), (1, 3), steps=30, num_envs=16)
