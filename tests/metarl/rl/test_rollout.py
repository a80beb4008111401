"""Lockstep rollouts against a slow loop over tasks, episodes and steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorWrapper
from torch.func import functional_call

from metarl.core.errors import NonFiniteError
from metarl.core.parameters import parameters_of
from metarl.core.randomness import RolloutKey, keyed_generator
from metarl.envs import Navigation2D
from metarl.rl.action_distributions import Categorical, DiagonalGaussian
from metarl.rl.episodes import to_samples
from metarl.rl.estimators import surrogate
from metarl.rl.policies import CategoricalMLP, GaussianMLP
from metarl.rl.rollout import collect, rollout
from tests.probes import Corridor, CorridorTasks

KEY = RolloutKey(seed=4, purpose="test/step_0", iteration=2)


def per_task(policy, tasks):
    """Different parameters for every task."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: value + 0.3 * torch.randn(tasks, *value.shape, generator=generator)
        for name, value in parameters_of(policy).items()
    }


def corridor_rollout(autoreset=AutoresetMode.NEXT_STEP, broken="", horizon=6):
    distribution = CorridorTasks(horizon, autoreset, broken)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (5,))
    torch.manual_seed(0)
    tasks = {"length": np.array([2, 9, 4])}
    phi = per_task(policy, 3)
    family = Categorical(distribution.action_space)
    return policy, phi, tasks, rollout(distribution.make(12), policy, family, phi, tasks, horizon, KEY)


@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_equals_one_episode_at_a_time_whatever_the_autoreset(autoreset):
    torch.manual_seed(1)
    policy, phi, tasks, episodes = corridor_rollout(autoreset)
    seeds = KEY.reset_seeds(3, 4)
    family = Categorical(Corridor.action_space)
    for task in range(3):
        for episode in range(4):
            env = Corridor()
            observation, _ = env.reset(
                seed=seeds[task * 4 + episode], options={"tasks": {"length": tasks["length"][[task]]}}
            )
            noise = keyed_generator(4, "test/step_0/action", 2, task, episode).random((6, 1), np.float32)
            own = {name: value[task] for name, value in phi.items()}
            for step in range(min(6, tasks["length"][task])):
                assert episodes.valid[task, step, episode]
                batch = torch.as_tensor(observation, dtype=torch.float32)[None]
                np.testing.assert_array_equal(episodes.observations[task, step, episode], batch[0])
                logits = functional_call(policy, own, (batch,))
                torch.testing.assert_close(episodes.distribution[task, step, episode], logits[0])
                action = family.sample(logits, torch.from_numpy(noise[step])[None])[0]
                assert episodes.actions[task, step, episode] == action
                torch.testing.assert_close(episodes.log_probs[task, step, episode], logits.log_softmax(-1)[0, action])
                observation, reward, terminated, _, _ = env.step(int(action))
                assert episodes.rewards[task, step, episode] == reward
            assert bool(episodes.terminated[task, episode]) == terminated
            np.testing.assert_array_equal(episodes.final_observations[task, episode], observation.astype(np.float32))
            assert episodes.lengths[task, episode] == min(6, tasks["length"][task])


def test_nothing_after_the_end_of_an_episode_is_kept():
    *_, episodes = corridor_rollout()
    assert (episodes.rewards[~episodes.valid] == 0).all()
    assert episodes.steps == 4 * (2 + 6 + 4)
    assert torch.equal(episodes.returns, episodes.rewards.sum(dim=1))


class Untidy(VectorWrapper):
    """Observations in reversed memory, which are no numbers in lanes that have ended."""

    def reset(self, **arguments):
        observations, infos = self.env.reset(**arguments)
        self.ended = np.zeros(self.num_envs, bool)
        return observations[:, ::-1].copy()[:, ::-1], infos

    def step(self, actions):
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        observations = np.where(self.ended[:, None], np.nan, observations)
        self.ended |= terminated
        return observations[:, ::-1].copy()[:, ::-1], rewards, terminated, truncated, infos


def test_what_ended_lanes_show_plays_no_part():
    policy, phi, tasks, expected = corridor_rollout()
    distribution = CorridorTasks(6)
    envs = Untidy(distribution.make(12))
    found = rollout(envs, policy, Categorical(distribution.action_space), phi, tasks, 6, KEY)
    for name in ("observations", "actions", "distribution"):
        values = getattr(found, name)
        assert torch.equal(values[found.valid], getattr(expected, name)[expected.valid])
        assert (values[~found.valid] == 0).all()
    assert torch.equal(found.log_probs[found.valid], expected.log_probs[expected.valid])
    assert torch.equal(found.final_observations, expected.final_observations)
    samples = to_samples(found, torch.ones_like(found.rewards))
    assert surrogate(Categorical(distribution.action_space), samples.distribution, samples).tolist() == pytest.approx(
        [-1] * 3
    )


def test_cut_after_the_longest_episode():
    distribution = CorridorTasks(horizon=50)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (5,))
    tasks = {"length": np.array([2, 5])}
    family = Categorical(distribution.action_space)
    episodes = rollout(distribution.make(4), policy, family, per_task(policy, 2), tasks, 50, KEY)
    assert episodes.rewards.shape == (2, 5, 2)


def navigation_rollout(tasks, phi, policy, key, episodes=5, horizon=30):
    distribution = Navigation2D(horizon)
    count = len(tasks["goal"])
    envs = distribution.make(count * episodes)
    return rollout(envs, policy, DiagonalGaussian(distribution.action_space), phi, tasks, horizon, key)


def test_a_share_of_the_tasks_has_exactly_the_same_episodes():
    distribution = Navigation2D()
    torch.manual_seed(0)
    policy = GaussianMLP(distribution.observation_space, distribution.action_space, (16, 16))
    tasks = distribution.sample(6, np.random.default_rng(0))
    phi = per_task(policy, 6)
    whole = navigation_rollout(tasks, phi, policy, KEY)
    for first, last in ((0, 2), (2, 6), (5, 6)):
        share = {name: value[first:last] for name, value in phi.items()}
        key = RolloutKey(KEY.seed, KEY.purpose, KEY.iteration, first_task=first)
        part = navigation_rollout({"goal": tasks["goal"][first:last]}, share, policy, key)
        steps = part.rewards.shape[1]
        assert torch.equal(part.actions, whole.actions[first:last, :steps])
        assert torch.equal(part.observations, whole.observations[first:last, :steps])
        assert torch.equal(part.rewards, whole.rewards[first:last, :steps])


def test_actions_reach_the_environment_in_its_own_range():
    distribution = Navigation2D()
    policy = GaussianMLP(distribution.observation_space, distribution.action_space, (4,))
    tasks = {"goal": np.array([[0.5, 0.5]])}
    episodes = navigation_rollout(tasks, per_task(policy, 1), policy, KEY)
    moved = (episodes.observations[:, 1:] - episodes.observations[:, :-1])[episodes.valid[:, 1:]]
    expected = 0.1 * episodes.actions[:, :-1][episodes.valid[:, 1:]].clamp(-1, 1)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)


def test_a_reward_that_is_not_finite_is_named():
    with pytest.raises(NonFiniteError, match=r"reward .*test/step_0 of iteration 2: task 0, episode 3, step 1"):
        corridor_rollout(broken="reward")


def test_an_observation_that_is_not_finite_is_named():
    with pytest.raises(NonFiniteError, match=r"observation .*: task 0, episode 2, step 1"):
        corridor_rollout(broken="observation")


class Blinded(VectorWrapper):
    """One lane sees nothing after the second step."""

    steps = 0

    def step(self, actions):
        observations, *others = self.env.step(actions)
        self.steps += 1
        observations[5] += np.nan if self.steps == 2 else 0
        return observations, *others


def test_not_the_action_but_the_observation_that_made_it_is_named():
    navigation = Navigation2D(horizon=6)
    policy = GaussianMLP(navigation.observation_space, navigation.action_space, (5,))
    tasks = {"goal": np.zeros((3, 2))}
    family = DiagonalGaussian(navigation.action_space)
    with pytest.raises(NonFiniteError, match=r"observation .*: task 1, episode 1, step 2"):
        rollout(Blinded(navigation.make(12)), policy, family, per_task(policy, 3), tasks, 6, KEY)


@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_success_counts_up_to_the_end_of_the_episode(autoreset):
    """Lengths 2, 9 and 4, success from step 4 on; later episodes of the same lane must not count."""
    *_, silent = corridor_rollout(autoreset)
    assert silent.succeeded is None
    *_, episodes = corridor_rollout(autoreset, "tells success")
    assert episodes.succeeded.tolist() == [[False] * 4, [True] * 4, [True] * 4]
    assert episodes.success_rates.tolist() == [0, 1, 1]


@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_an_episode_does_not_fail_after_its_end(autoreset):
    *_, episodes = corridor_rollout(autoreset, "blows up afterwards")
    assert episodes.lengths.min() < 5
    assert not episodes.failed.any()


@pytest.mark.parametrize("first", [False, True])
def test_success_that_only_some_episodes_tell_of_counts_as_none_of_the_others(first):
    *_, silent = corridor_rollout(AutoresetMode.NEXT_STEP)
    *_, telling = corridor_rollout(AutoresetMode.NEXT_STEP, "tells success")
    both = telling.joined(silent) if first else silent.joined(telling)
    told, untold = telling.succeeded.tolist(), [[False] * 4] * 3
    pairs = zip(told, untold, strict=True) if first else zip(untold, told, strict=True)
    assert both.succeeded.tolist() == [a + b for a, b in pairs]


def test_success_of_joined_episodes_counts_those_that_are_there():
    distribution = CorridorTasks(6, AutoresetMode.NEXT_STEP, "tells success")
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (5,))
    tasks = {"length": np.array([3, 9])}
    arguments = (policy, Categorical(distribution.action_space), per_task(policy, 2), tasks, 6, KEY)
    collected = collect(distribution.make(4), *arguments, steps=7)
    assert collected.succeeded.tolist() == [[False] * 3, [True, True, False]]  # the last one is absent
    assert collected.success_rates.tolist() == [0, 1]


def test_collect_counts_steps_in_whole_episodes():
    distribution = CorridorTasks(6, AutoresetMode.NEXT_STEP, "")
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (5,))
    tasks = {"length": np.array([2, 9, 4])}
    phi = per_task(policy, 3)
    family = Categorical(distribution.action_space)
    arguments = (distribution.make(12), policy, family, phi, tasks, 6)
    collected = collect(*arguments, KEY, steps=24)
    # 12 episodes of 2 steps, 4 of 6, 6 of 4
    assert collected.valid.any(dim=1).sum(dim=1).tolist() == [12, 4, 6]
    assert collected.lengths.sum(dim=1).tolist() == [24, 24, 24]
    rounds = [rollout(*arguments, replace(KEY, first_episode=first)) for first in (0, 4, 8)]
    for task in range(3):
        for episode in range(collected.valid.shape[2]):
            single, lane = rounds[episode // 4], episode % 4
            length = int(collected.lengths[task, episode])
            assert length in (0, min(6, tasks["length"][task]))
            for name in ("observations", "actions", "distribution", "log_probs", "rewards"):
                expected = getattr(single, name)[task, :length, lane]
                assert torch.equal(getattr(collected, name)[task, :length, episode], expected), name
            if length:
                assert collected.terminated[task, episode] == single.terminated[task, lane]
                assert torch.equal(collected.final_observations[task, episode], single.final_observations[task, lane])
    for task in range(3):
        present = collected.valid[task].any(dim=0)
        torch.testing.assert_close(collected.mean_returns[task], collected.returns[task, present].mean())
    assert (collected.rewards[~collected.valid] == 0).all()


def test_collect_stops_with_the_episode_that_reaches_the_budget():
    distribution = CorridorTasks(6, AutoresetMode.NEXT_STEP, "")
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (5,))
    tasks = {"length": np.array([3, 9])}
    phi = per_task(policy, 2)
    collected = collect(
        distribution.make(4), policy, Categorical(distribution.action_space), phi, tasks, 6, KEY, steps=7
    )
    assert collected.lengths.tolist() == [[3, 3, 3], [6, 6, 0]]


def test_an_episode_beyond_the_budget_has_not_failed():
    *_, episodes = corridor_rollout()
    shortened = replace(episodes, failed=torch.ones_like(episodes.failed)).up_to(7)
    present = shortened.valid.any(dim=1)
    assert torch.equal(shortened.failed, present)
    assert not present.all()


def test_a_discrete_policy_that_has_diverged_is_named():
    """Logits that are no numbers would all choose the first action."""
    distribution = CorridorTasks()
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (5,))
    phi = per_task(policy, 3)
    next(iter(phi.values()))[1] = torch.nan
    tasks, family = {"length": np.array([2, 9, 4])}, Categorical(distribution.action_space)
    with pytest.raises(NonFiniteError, match=r"log-probability of the action is .*: task 1, episode 0, step 0"):
        rollout(distribution.make(12), policy, family, phi, tasks, 6, KEY)


def test_the_time_limit_terminates_nothing():
    policy = GaussianMLP(Navigation2D().observation_space, Navigation2D().action_space, (4,))
    episodes = navigation_rollout({"goal": np.array([[0.5, 0.5]])}, per_task(policy, 1), policy, KEY, horizon=5)
    assert not episodes.terminated.any()
    assert episodes.lengths.tolist() == [[5] * 5]
