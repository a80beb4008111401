"""Every draw is named; nothing else changes it."""

import numpy as np

from metarl.core.randomness import RolloutKey, keyed_generator


def test_a_name_gives_the_same_numbers_whatever_was_drawn_before():
    first = keyed_generator(3, "train/tasks", 7).random(5)
    keyed_generator(3, "train/tasks", 7).random(1000)
    assert (keyed_generator(3, "train/tasks", 7).random(5) == first).all()


def test_names_that_differ_in_one_place_give_different_numbers():
    names = [
        (1, "a", 0, 0, 0),
        (2, "a", 0, 0, 0),
        (1, "b", 0, 0, 0),
        (1, "a", 1, 0, 0),
        (1, "a", 0, 1, 0),
        (1, "a", 0, 0, 1),
    ]
    draws = {keyed_generator(*name).random() for name in names}
    assert len(draws) == len(names)


def test_noise_of_a_lane_is_that_of_its_own_name():
    noise = RolloutKey(5, "train/step_0", 2).normal(tasks=3, steps=4, episodes=2, size=3)
    own = keyed_generator(5, "train/step_0/action", 2, task=2, episode=1).standard_normal((4, 3), np.float32)
    assert (noise[2, :, 1] == own).all()


def test_a_shard_of_the_tasks_gets_the_same_noise_and_seeds():
    whole, shard = RolloutKey(5, "p", 2), RolloutKey(5, "p", 2, first_task=2)
    assert (whole.normal(4, 3, 2, 2)[2:] == shard.normal(2, 3, 2, 2)).all()
    assert whole.reset_seeds(4, 3)[6:] == shard.reset_seeds(2, 3)
    assert (whole.uniform(4, 3, 2, 1)[2:] == shard.uniform(2, 3, 2, 1)).all()


def test_later_episodes_of_a_task_have_their_own_noise_and_seeds():
    whole, later = RolloutKey(5, "p", 2), RolloutKey(5, "p", 2, first_episode=2)
    assert (whole.normal(3, 4, 5, 2)[:, :, 2:] == later.normal(3, 4, 3, 2)).all()
    assert (whole.uniform(3, 4, 5, 1)[:, :, 2:] == later.uniform(3, 4, 3, 1)).all()
    assert np.array(whole.reset_seeds(3, 5)).reshape(3, 5)[:, 2:].ravel().tolist() == later.reset_seeds(3, 3)


def test_resets_have_a_stream_of_their_own():
    seeds = RolloutKey(5, "train/step_0", 2).reset_seeds(tasks=3, episodes=2)
    assert seeds[5] == keyed_generator(5, "train/step_0/reset", 2, task=2, episode=1).integers(2**31)


def test_noise_never_repeats_over_lanes_iterations_and_steps():
    draws = [RolloutKey(0, f"train/step_{k}", i).normal(4, 50, 5, 2).ravel() for i in range(3) for k in range(2)]
    values = np.concatenate(draws)
    assert len(np.unique(values)) > 0.999 * len(values)  # float32 rounds a few to the same number


def test_noise_is_standard_normal():
    noise = RolloutKey(0, "p", 0).normal(20, 100, 20, 2).astype(np.float64)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.02


def test_every_episode_of_every_rollout_has_a_reset_of_its_own():
    keys = [RolloutKey(0, f"train/step_{step}", iteration) for iteration in range(3) for step in range(2)]
    seeds = [seed for key in keys for seed in key.reset_seeds(6, 5)]
    assert len(set(seeds)) == len(seeds) == 180


def test_the_key_of_a_step_names_the_step_and_the_first_task():
    key = RolloutKey(5, "train", 2).of_step(3, first_task=4)
    assert key == RolloutKey(5, "train/step_3", 2, first_task=4)
    assert (key.normal(1, 2, 1, 1) == RolloutKey(5, "train/step_3", 2).normal(5, 2, 1, 1)[4:]).all()
