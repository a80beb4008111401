"""Dictionaries and pictures as observations, and modules that take them."""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import nn

from metarl import envs
from metarl.rl.policies import DictObservations
from tests.builders import make_learner, without_times
from tests.envs.examples import Parts, draw_factor, draw_pendulum, set_factor, set_pendulum


class PartsPolicy(nn.Module):
    """Uses every part of the dictionary by its name."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, parts):
        assert set(parts) == {"picture", "place", "way"}
        return self.linear(torch.cat([parts["picture"].flatten(-2) / 255, parts["place"], parts["way"]], dim=-1))


def test_a_dictionary_comes_flat_and_a_module_gets_its_parts():
    distribution = envs.GymnasiumTasks(Parts, draw_factor, set_factor, horizon=4)
    policy = DictObservations(PartsPolicy(), Parts.observation_space)
    learner = make_learner(distribution, policy, num_tasks=2, episodes_per_task=3)
    episodes = learner.adapt({"factor": np.array([1.0, -1.0])}, 0)[0].episodes
    assert episodes.observations.shape == (2, 4, 3, 8)
    for step in range(4):
        parts = {"picture": np.full((2, 2), 10 * step, np.uint8), "place": np.float64(0), "way": step % 3}
        expected = gymnasium.spaces.flatten(Parts.observation_space, parts)
        flat = episodes.observations[0, step, 1].numpy()
        np.testing.assert_array_equal(np.delete(flat, 4), np.delete(expected, 4))  # place is number 4
    np.testing.assert_allclose(episodes.rewards[0, :-1], episodes.observations[0, 1:, :, 4], atol=1e-6)
    np.testing.assert_allclose(episodes.rewards[1, :-1], -episodes.observations[1, 1:, :, 4], atol=1e-6)
    flat = episodes.observations[0, 2]
    seen = torch.cat([flat[:, :4] / 255, flat[:, 4:]], dim=-1)
    torch.testing.assert_close(policy(flat), policy.module.linear(seen))
    assert np.isfinite(list(learner.step().values())).all()


class Picture(gymnasium.ObservationWrapper):
    """The numbers of a Pendulum as a small picture (1, 3, 1)."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = Box(-8.0, 8.0, (1, 3, 1), np.float32)

    def observation(self, observation):
        return observation.reshape(1, 3, 1)


def test_pictures_learn_what_their_numbers_in_a_row_would():
    results = []
    for wrap in (lambda env: env, Picture):
        distribution = envs.GymnasiumTasks(
            lambda wrap=wrap: wrap(gymnasium.make("Pendulum-v1")), draw_pendulum, set_pendulum, horizon=20
        )
        torch.manual_seed(0)
        policy = nn.Sequential(nn.Flatten(), nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        learner = make_learner(distribution, policy, num_tasks=2, episodes_per_task=3, bootstrap=True)
        metrics = [learner.step() for _ in range(2)]
        results.append([without_times(line) for line in metrics])
        assert learner.agent(learner.adapt(distribution.sample(1, np.random.default_rng(0)), 0)[0])(
            np.zeros(distribution.observation_space.shape)
        ).shape == (1,)
    assert results[0] == results[1]


def test_a_convolution_is_a_policy_too():
    distribution = envs.GymnasiumTasks(
        lambda: Picture(gymnasium.make("Pendulum-v1")), draw_pendulum, set_pendulum, horizon=10
    )
    policy = nn.Sequential(nn.Conv2d(1, 4, (2, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
    learner = make_learner(distribution, policy, num_tasks=2, episodes_per_task=3)
    before = learner.theta["0.weight"].clone()
    assert learner.step()["accepted"] == 1.0
    assert not torch.equal(learner.theta["0.weight"], before)
