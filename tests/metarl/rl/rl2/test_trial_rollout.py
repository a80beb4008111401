"""Trials against a slow loop over tasks, episodes and steps; what a policy sees, and what its memory holds."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from metarl.core.errors import NonFiniteError
from metarl.core.randomness import RolloutKey, keyed_generator
from metarl.envs import BernoulliBandits, Navigation2D
from metarl.rl.action_distributions import action_distribution_for
from metarl.rl.rl2.trial_rollout import TrialRollout
from metarl.rl.rl2.trials import to_trials
from tests.metarl.rl.rl2.builders import recurrent
from tests.probes import Corridor, CorridorTasks

KEY = RolloutKey(seed=4, purpose="test", iteration=2)
LENGTHS = np.array([2, 9, 4])  # of a horizon of 6: the second is cut by the time limit
EPISODES = 3


def played(distribution, tasks, key=KEY, episodes=EPISODES, policy=None):
    family = action_distribution_for(distribution.action_space)
    rollout = TrialRollout(policy or recurrent(distribution), family, distribution.horizon)
    return rollout(distribution.make(len(next(iter(tasks.values())))), tasks, key, episodes)


def corridor_trials(autoreset=AutoresetMode.NEXT_STEP, broken="", episodes=EPISODES):
    return played(CorridorTasks(6, autoreset, broken), {"length": LENGTHS}, episodes=episodes)


@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_equals_one_step_of_one_trial_at_a_time_whatever_the_autoreset(autoreset):
    """So done and the last reward reach the next episode, and the memory is 0 at a trial's start and never again."""
    distribution = CorridorTasks(6, autoreset)
    policy, family = recurrent(distribution), action_distribution_for(distribution.action_space)
    episodes, values = corridor_trials(autoreset)
    for task, length in enumerate(LENGTHS):
        memory, previous = None, [0.0, 0.0, 0.0, 0.0, 0.0]  # one-hot action, reward, end
        for episode in range(EPISODES):
            env, key = Corridor(), RolloutKey(4, "test", 2, first_episode=episode)
            observation, _ = env.reset(seed=key.reset_seeds(3, 1)[task], options={"tasks": {"length": LENGTHS[[task]]}})
            noise = keyed_generator(4, "test/action", 2, task, episode).random((6, 1), np.float32)
            assert episodes.lengths[task, episode] == min(6, length)
            for step in range(min(6, length)):
                inputs = torch.tensor([[[*observation, *previous]]], dtype=torch.float32)
                logits, value, memory = policy(inputs, memory)
                at = (task, step, episode)
                torch.testing.assert_close(episodes.dist_params[at], logits[0, 0], atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(values[at], value[0, 0], atol=1e-5, rtol=1e-5)
                action = int(family.sample(logits[0], torch.from_numpy(noise[step])[None]))
                assert episodes.actions[at] == action
                observation, reward, terminated, _, _ = env.step(action)
                assert episodes.rewards[at] == reward
                previous = [*np.eye(3)[action], reward, float(terminated or step == 5)]
            assert bool(episodes.terminated[task, episode]) == (length <= 6)


def test_log_probabilities_in_one_pass_are_those_of_the_rollout():
    for distribution, tasks in (
        (CorridorTasks(6), {"length": LENGTHS}),
        (Navigation2D(7), {"goal": np.array([[0.1, 0.0], [-0.3, 0.2]])}),
    ):
        policy, family = recurrent(distribution), action_distribution_for(distribution.action_space)
        episodes, values = played(distribution, tasks)
        trials = to_trials(episodes, episodes.rewards, values, family)
        dist_params, again, _ = policy(trials.inputs)
        log_probs = family.log_prob(dist_params, trials.actions)
        assert trials.valid.sum() == episodes.env_steps
        torch.testing.assert_close(log_probs[trials.valid], trials.log_probs[trials.valid], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(again[trials.valid], trials.values[trials.valid], atol=1e-5, rtol=1e-5)


def test_an_end_and_the_last_reward_are_in_the_next_input_also_at_a_time_limit():
    """Bandits never terminate. Implementations that flag terminations alone, or reset before they look, show none."""
    distribution = BernoulliBandits(3, 4)
    episodes, values = played(distribution, distribution.sample(20, np.random.default_rng(0)))
    assert not episodes.terminated.any()
    trials = to_trials(episodes, episodes.rewards, values, action_distribution_for(distribution.action_space))
    rewards, ends = trials.inputs[..., -2], trials.inputs[..., -1]
    assert (ends[:, [4, 8]] == 1).all()
    assert ends.sum() == 2 * 20
    torch.testing.assert_close(rewards[:, [4, 8]], episodes.rewards[:, -1, :2])
    assert 0 < rewards[:, 4].mean() < 1
    assert not trials.inputs[:, 0, 1:].any()  # beside the observation


def test_a_waiting_lane_keeps_its_memory():
    """The short trial is the same beside a long one and alone."""
    both, values = corridor_trials()
    alone, own = played(CorridorTasks(6), {"length": LENGTHS[:1]})
    torch.testing.assert_close(both.dist_params[:1, :2], alone.dist_params, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values[:1, :2], own, atol=1e-5, rtol=1e-5)
    assert not both.valid[0, 2:].any()
    assert not values[0, 2:].any()


def test_the_second_episode_depends_on_the_first():
    """With the memory or the previous step lost at its beginning it would be that of a new trial."""
    first = RolloutKey(4, "test", 2, first_episode=1)
    episodes, _ = corridor_trials()
    fresh, _ = played(CorridorTasks(6), {"length": LENGTHS}, first, 1)
    torch.testing.assert_close(episodes.observations[:, 0, 1], fresh.observations[:, 0, 0])
    assert (episodes.dist_params[:, 0, 1] != fresh.dist_params[:, 0, 0]).all(dim=-1).all()


@dataclass(frozen=True)
class Permuted(RolloutKey):
    """The randomness of tasks in another order."""

    order: tuple[int, ...] = (2, 0, 1)

    def reset_seeds(self, tasks, episodes):
        seeds = np.reshape(super().reset_seeds(tasks, episodes), (tasks, episodes))
        return seeds[list(self.order)].flatten().tolist()

    def uniform(self, *shape):
        return super().uniform(*shape)[list(self.order)]


def test_permuted_tasks_have_permuted_trials():
    order = list(Permuted.order)
    episodes, values = corridor_trials()
    other, their_values = played(CorridorTasks(6), {"length": LENGTHS[order]}, Permuted(4, "test", 2))
    for name in ("observations", "actions", "dist_params", "rewards", "valid", "terminated"):
        torch.testing.assert_close(getattr(other, name), getattr(episodes, name)[order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(their_values, values[order], atol=1e-5, rtol=1e-5)


def test_what_is_not_finite_is_named():
    with pytest.raises(NonFiniteError, match="reward is not finite in test of iteration 2: task 3, episode 0, step 1"):
        played(CorridorTasks(6, broken="reward"), {"length": np.array([4, 4, 4, 4])})
    policy = recurrent(CorridorTasks())
    with torch.no_grad():
        policy.action.bias.fill_(np.nan)
    with pytest.raises(NonFiniteError, match="task 0, episode 0, step 0"):
        played(CorridorTasks(6), {"length": LENGTHS}, policy=policy)
