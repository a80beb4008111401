"""The `peers` dynamics: every term of the rewards, computed by hand from the state of the simulator."""

import numpy as np
import pytest

from metarl import envs

CHEETAH_ACTION = np.array([1.0, -1.0, 0.5, 0.5, 0.0, 2.0])  # clipped, its squares sum to 3.5
ANT_ACTION = np.array([1.0, -0.5, 0.5, 0.0, 0.0, 0.5, 0.0, 0.5])  # its squares sum to 2


def stepped(distribution, task, action, change=None):
    """A batch of one lane before and after a step: x of the torso at both times, and what the step returned."""
    batch = distribution.make(1)
    batch.reset(seed=3, options={"tasks": {name: np.array([value]) for name, value in task.items()}})
    if change is not None:
        change(batch.simulation)
        batch.simulation.forward()
    x = distribution.body.position(batch.state)[0, 0]
    return batch, x, batch.step(action[None])


@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_half_cheetah_direction(direction):
    batch, before, (observations, rewards, _, _, _) = stepped(
        envs.HalfCheetahDirection("peers"), {"direction": direction}, CHEETAH_ACTION
    )
    qpos, qvel = batch.simulation.qpos[0], batch.simulation.qvel[0]
    assert abs(qpos[0] - before) > 1e-3
    assert rewards[0] == pytest.approx(direction * (qpos[0] - before) / 0.05 - 0.05 * 3.5, abs=1e-12)
    np.testing.assert_array_equal(observations[0], [*qpos[1:], *qvel])
    assert observations.shape == (1, 17)


def test_half_cheetah_velocity():
    batch, before, (_, rewards, _, _, _) = stepped(
        envs.HalfCheetahVelocity("peers"), {"velocity": 2.75}, CHEETAH_ACTION
    )
    vx = (batch.simulation.qpos[0, 0] - before) / 0.05
    assert rewards[0] == pytest.approx(-abs(vx - 2.75) - 0.05 * 3.5, abs=1e-12)


def lift(simulation):
    """Far above the ground, where nothing touches anything."""
    simulation.qpos[0, 2] = 5.0


def lie(simulation):
    """With the torso's height within its range, and feet in the ground."""
    simulation.qpos[0, 2] = 0.4


@pytest.mark.parametrize("change", [lift, lie])
@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_ant_direction(change, direction):
    batch, before, (observations, rewards, terminated, _, _) = stepped(
        envs.AntDirection("peers"), {"direction": direction}, ANT_ACTION, change
    )
    vx = (batch.state["xpos"][0, 1, 0] - before) / 0.05
    contact = 0.0005 * np.square(np.clip(batch.state["cfrc_ext"][0], -1, 1)).sum()
    assert (contact > 0) == (change is lie)
    assert rewards[0] == pytest.approx(direction * vx + 1.0 - 0.5 * 2.0 - contact, abs=1e-12)
    assert terminated[0] == (change is lift)  # and the step in which it ends has the survival reward too
    np.testing.assert_array_equal(observations[0], [*batch.simulation.qpos[0, 2:], *batch.simulation.qvel[0]])
    assert observations.shape == (1, 27)


@pytest.mark.parametrize("change", [lift, lie])
def test_ant_goal(change):
    batch, _, (observations, rewards, terminated, _, _) = stepped(
        envs.AntGoal("peers"), {"goal": [2.0, -1.0]}, ANT_ACTION, change
    )
    x, y = batch.state["xpos"][0, 1, :2]
    forces = np.clip(batch.state["cfrc_ext"][0], -1, 1)
    contact = 0.0005 * np.square(forces).sum()
    assert (contact > 0) == (change is lie)
    assert rewards[0] == pytest.approx(-abs(x - 2.0) - abs(y + 1.0) - 0.1 * 2.0 - contact, abs=1e-12)
    assert not terminated[0]
    qpos, qvel = batch.simulation.qpos[0].copy(), batch.simulation.qvel[0]
    np.testing.assert_array_equal(observations[0], [*qpos, *qvel, *forces[1:].ravel()])
    assert observations.shape == (1, 107)
    batch.step(ANT_ACTION[None])
    assert not np.array_equal(batch.simulation.qpos[0], qpos)  # it goes on


def test_velocities_up_to_three():
    velocities = envs.HalfCheetahVelocity("peers").sample(300, np.random.default_rng(0))["velocity"]
    np.testing.assert_array_equal(np.sort(velocities) // 0.01, np.arange(300))
    test = envs.HalfCheetahVelocity("peers").sample_test(4000, np.random.default_rng(0))["velocity"]
    assert test.mean() == pytest.approx(1.5, abs=0.05)
    assert 2.99 < test.max() < 3.0


def test_goals_are_uniform_on_the_disc():
    """Half of them lie within 3 / sqrt(2); the mean of the squared radius is 9 / 2."""
    goals = envs.AntGoal("peers").sample(8000, np.random.default_rng(0))["goal"]
    radius = np.hypot(*goals.T)
    assert (radius < 3 / np.sqrt(2)).mean() == pytest.approx(0.5, abs=0.02)
    assert np.square(radius).mean() == pytest.approx(4.5, abs=0.1)
    np.testing.assert_allclose(goals.mean(axis=0), 0.0, atol=0.07)
    assert radius.max() < 3.0


def test_goals_beyond_the_disc_are_refused():
    batch = envs.AntGoal("peers").make(1)
    batch.reset(options={"tasks": {"goal": np.array([[3 * np.cos(1.0), 3 * np.sin(1.0)]])}})
    with pytest.raises(ValueError, match="'goal' of task 0"):
        batch.reset(options={"tasks": {"goal": np.array([[2.9, 2.9]])}})
