"""The humanoid equals Humanoid-v5, but for the direction and the reward in the step in which it falls."""

import gymnasium
import numpy as np
import pytest

from metarl import envs


@pytest.mark.parametrize("angle", [0.0, 1.1])
def test_it_equals_gymnasiums(angle):
    distribution = envs.HumanoidDirection()
    batch = distribution.make(3)
    observations, _ = batch.reset(seed=11, options={"tasks": {"angle": np.array([angle])}})
    singles = [gymnasium.make("Humanoid-v5").unwrapped for _ in range(3)]
    for i, single in enumerate(singles):
        np.testing.assert_array_equal(observations[i], single.reset(seed=11 + i)[0])
    rng, contacts, falls = np.random.default_rng(0), 0, 0
    for _ in range(60):
        actions = rng.uniform(-0.5, 0.5, (3, 17))
        finished = batch.finished.copy()
        observations, rewards, terminated, _, _ = batch.step(actions)
        for i in np.flatnonzero(~finished):
            observation, _, done, _, info = singles[i].step(np.clip(actions[i], -0.4, 0.4))
            np.testing.assert_array_equal(observations[i], observation)
            along = np.cos(angle) * info["x_velocity"] + np.sin(angle) * info["y_velocity"]
            expected = 1.25 * along + 5 + info["reward_ctrl"] + info["reward_contact"]
            assert rewards[i] == pytest.approx(expected, abs=1e-10)
            assert terminated[i] == done
            contacts += bool(np.any(singles[i].data.cfrc_ext))
            falls += done
    assert contacts > 10
    assert falls == 3


def test_angles_are_spread_over_the_circle():
    distribution = envs.HumanoidDirection()
    angles = np.sort(distribution.sample(8, np.random.default_rng(2))["angle"])
    np.testing.assert_allclose(np.diff(angles), np.pi / 4)
    first = [distribution.sample(4, np.random.default_rng(seed))["angle"][0] for seed in range(400)]
    free = distribution.sample_test(4000, np.random.default_rng(0))["angle"]
    for drawn in (first, free):
        assert np.abs(np.quantile(drawn, [0.25, 0.5, 0.75]) / (2 * np.pi) - [0.25, 0.5, 0.75]).max() < 0.07
        assert 0 <= np.min(drawn) <= np.max(drawn) < 2 * np.pi
