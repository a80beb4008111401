"""Lockstep rollouts against a slow loop over tasks, episodes and steps."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorWrapper
from torch.func import functional_call

from metarl.core.errors import NonFiniteError
from metarl.core.randomness import RolloutKey, keyed_generator
from metarl.core.recording import RecordedModule
from metarl.envs import Navigation2D
from metarl.rl.action_distributions import Categorical
from metarl.rl.episodes import to_samples
from metarl.rl.estimators import surrogate
from metarl.rl.policies import CategoricalMLP, GaussianMLP
from metarl.rl.rollout import rounds
from tests.builders import play, random_parameters
from tests.probes import Corridor, CorridorTasks

KEY = RolloutKey(seed=4, purpose="test/step_0", iteration=2)


def corridor_rollout(autoreset=AutoresetMode.NEXT_STEP, broken="", lengths=(2, 9, 4)):
    """Four episodes of three tasks."""
    distribution = CorridorTasks(6, autoreset, broken)
    torch.manual_seed(0)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (5,))
    tasks, phi = {"length": np.array(lengths)}, random_parameters(policy, 3)
    return policy, phi, tasks, play(distribution.make(12), policy, phi, tasks, KEY, 6)


@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("lengths", [(2, 9, 4), (6, 2, 7)], ids=["cut", "ends at the horizon"])
def test_equals_one_episode_at_a_time_whatever_the_autoreset(autoreset, lengths):
    policy, phi, tasks, episodes = corridor_rollout(autoreset, lengths=lengths)
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
                torch.testing.assert_close(episodes.dist_params[task, step, episode], logits[0])
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
    assert episodes.env_steps == 4 * (2 + 6 + 4)
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
    found = play(envs, policy, phi, tasks, KEY, 6)
    for name in ("observations", "actions", "dist_params"):
        values = getattr(found, name)
        assert torch.equal(values[found.valid], getattr(expected, name)[expected.valid])
        assert (values[~found.valid] == 0).all()
    assert torch.equal(found.log_probs[found.valid], expected.log_probs[expected.valid])
    assert torch.equal(found.final_observations, expected.final_observations)
    samples = to_samples(found, torch.ones_like(found.rewards))
    losses = surrogate(Categorical(distribution.action_space), samples.dist_params, samples)
    assert losses.tolist() == pytest.approx([-1] * 3)


def test_cut_after_the_longest_episode():
    distribution = CorridorTasks(horizon=50)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (5,))
    tasks = {"length": np.array([2, 5])}
    episodes = play(distribution.make(4), policy, random_parameters(policy, 2), tasks, KEY, 50)
    assert episodes.rewards.shape == (2, 5, 2)


def navigation_rollout(tasks, phi, policy, key, episodes=5, horizon=30):
    envs = Navigation2D(horizon).make(len(tasks["goal"]) * episodes)
    return play(envs, policy, phi, tasks, key, horizon)


def test_a_shard_of_the_tasks_has_exactly_the_same_episodes():
    distribution = Navigation2D()
    torch.manual_seed(0)
    policy = GaussianMLP(distribution.observation_space, distribution.action_space, (16, 16))
    tasks = distribution.sample(6, np.random.default_rng(0))
    phi = random_parameters(policy, 6)
    whole = navigation_rollout(tasks, phi, policy, KEY)
    for first, last in ((0, 2), (2, 6), (5, 6)):
        shard = {name: value[first:last] for name, value in phi.items()}
        key = RolloutKey(KEY.seed, KEY.purpose, KEY.iteration, first_task=first)
        part = navigation_rollout({"goal": tasks["goal"][first:last]}, shard, policy, key)
        steps = part.rewards.shape[1]
        assert torch.equal(part.actions, whole.actions[first:last, :steps])
        assert torch.equal(part.observations, whole.observations[first:last, :steps])
        assert torch.equal(part.rewards, whole.rewards[first:last, :steps])


def test_actions_reach_the_environment_in_its_own_range():
    distribution = Navigation2D()
    policy = GaussianMLP(distribution.observation_space, distribution.action_space, (4,))
    tasks = {"goal": np.array([[0.5, 0.5]])}
    episodes = navigation_rollout(tasks, random_parameters(policy, 1), policy, KEY)
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
    with pytest.raises(NonFiniteError, match=r"observation .*: task 1, episode 1, step 2"):
        play(Blinded(navigation.make(12)), policy, random_parameters(policy, 3), tasks, KEY, 6)


@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_success_counts_up_to_the_end_of_the_episode(autoreset):
    """Lengths 2, 9 and 4, success from step 4 on; later episodes of the same lane must not count."""
    *_, silent = corridor_rollout(autoreset)
    assert silent.succeeded is None
    *_, episodes = corridor_rollout(autoreset, "reports success")
    assert episodes.succeeded.tolist() == [[False] * 4, [True] * 4, [True] * 4]
    assert episodes.success_rates.tolist() == [0, 1, 1]


@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_an_episode_does_not_fail_after_its_end(autoreset):
    *_, episodes = corridor_rollout(autoreset, "blows up afterwards")
    assert episodes.lengths.min() < 5
    assert not episodes.failed.any()


def test_a_discrete_policy_that_has_diverged_is_named():
    """Logits that are no numbers would all choose the first action."""
    distribution = CorridorTasks()
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (5,))
    phi = random_parameters(policy, 3)
    next(iter(phi.values()))[1] = torch.nan
    tasks = {"length": np.array([2, 9, 4])}
    with pytest.raises(NonFiniteError, match=r"log-probability of the action is .*: task 1, episode 0, step 0"):
        play(distribution.make(12), policy, phi, tasks, KEY, 6)


def test_the_time_limit_terminates_nothing():
    policy = GaussianMLP(Navigation2D().observation_space, Navigation2D().action_space, (4,))
    episodes = navigation_rollout(
        {"goal": np.array([[0.5, 0.5]])}, random_parameters(policy, 1), policy, KEY, horizon=5
    )
    assert not episodes.terminated.any()
    assert episodes.lengths.tolist() == [[5] * 5]


@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_end_of_a_lanes_next_episode_does_not_terminate_the_one_that_was_cut(autoreset):
    """The first task's episodes are cut after two steps; those that follow in the same lanes terminate."""
    *_, episodes = corridor_rollout(autoreset, "cuts its first episode")
    assert episodes.lengths.tolist() == [[2] * 4, [6] * 4, [4] * 4]
    assert episodes.terminated.tolist() == [[False] * 4, [False] * 4, [True] * 4]


def test_long_rollouts_are_recorded_and_change_nothing(monkeypatch):
    policy = GaussianMLP(Navigation2D().observation_space, Navigation2D().action_space, (4,))
    tasks, phi = {"goal": np.array([[0.5, 0.5], [-0.5, 0.1]])}, random_parameters(policy, 2)
    bound = []
    bind = RecordedModule.bind
    monkeypatch.setattr(RecordedModule, "bind", lambda *arguments: bound.append(1) or bind(*arguments))
    recorded = navigation_rollout(tasks, phi, policy, KEY, horizon=60)
    assert bound == [1]
    monkeypatch.setattr("metarl.rl.rollout._RECORD_FROM", 1000)
    plain = navigation_rollout(tasks, phi, policy, KEY, horizon=60)
    assert bound == [1]
    for name in ("observations", "actions", "dist_params", "log_probs", "rewards"):
        assert torch.equal(getattr(recorded, name), getattr(plain, name)), name


@pytest.mark.parametrize(
    ("num_envs", "shapes"),
    [(12, [(4, 3)]), (6, [(2, 3)] * 2), (3, [(1, 3)] * 4), (1, [(1, 1)] * 12)],
)
def test_rounds_are_equal_and_cover_every_episode_once(num_envs, shapes):
    played = np.zeros((4, 3), int)
    found = rounds(4, 3, num_envs)
    for place in found:
        played[place] += 1
    assert (played == 1).all()
    assert [played[place].shape for place in found] == shapes


@pytest.mark.parametrize("num_envs", [2, 5, 9, 24])
def test_lanes_that_make_no_equal_rounds_are_refused(num_envs):
    with pytest.raises(ValueError, match=rf"^lanes for 4 tasks x 3 episodes = {num_envs}"):
        rounds(4, 3, num_envs)
