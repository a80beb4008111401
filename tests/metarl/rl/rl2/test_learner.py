"""The learner of RL^2: against slow recurrent PPO, resuming to the last bit, learning, and what it leaves alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl import NonFiniteError
from metarl.core.randomness import keyed_generator
from metarl.envs import BernoulliBandits, Navigation2D
from metarl.rl.advantages import Advantages
from metarl.rl.rl2.learner import RL2Learner
from metarl.rl.rl2.policies import RecurrentPolicy
from metarl.rl.rl2.ppo import TrialPPO
from metarl.rl.rl2.trial_rollout import TrialRollout
from metarl.rl.sampler import Sampling
from tests.builders import same, without_times
from tests.metarl.rl.rl2.builders import recurrent, trial_learner
from tests.metarl.rl.rl2.recurrent_ppo import RecurrentPPO


def test_trials_of_one_episode_are_those_of_recurrent_ppo():
    bandits = BernoulliBandits(3, 6)
    policy, slow = recurrent(bandits), recurrent(bandits)
    ppo = TrialPPO(0.01, epochs=3, minibatches=2, clip=0.2, entropy_bonus=0.05, value_weight=0.4, max_gradient_norm=0.3)
    advantages = Advantages(discount=0.9, gae_lambda=0.7)
    learner = RL2Learner(bandits, policy, Sampling(7, 1), ppo, advantages, seed=3)
    other = RecurrentPPO(slow.gru, slow.action, slow.value, 7, 3, 6, epochs=3, minibatches=2, seed=3)
    for _ in range(3):
        metrics = learner.step()
        assert metrics["return/trial"] == pytest.approx(other.step())
    for name, value in slow.named_parameters():
        torch.testing.assert_close(learner.theta[name], value.detach(), atol=2e-5, rtol=1e-4)


def test_a_learner_learns_to_repeat_what_pays():
    """Two arms and 6 pulls: a random policy gets 3, and the best one there is 3.51."""
    bandits = BernoulliBandits(2, 6)
    torch.manual_seed(0)
    policy = RecurrentPolicy(bandits.observation_space, bandits.action_space, 16)
    ppo = TrialPPO(0.01, epochs=5, minibatches=2, entropy_bonus=0.0)
    learner = RL2Learner(bandits, policy, Sampling(400, 1), ppo, Advantages(gae_lambda=0.3))
    before = learner.evaluate(2000).mean[0]
    for _ in range(25):
        learner.step()
    after = learner.evaluate(2000).mean[0]
    assert before == pytest.approx(3.0, abs=0.15)
    assert after > 3.3


def test_a_resumed_run_is_the_same_to_the_last_bit():
    whole = trial_learner()
    for _ in range(4):
        expected = whole.step()
    first = trial_learner()
    for _ in range(2):
        first.step()
    resumed = trial_learner()
    resumed.load_state_dict(first.state_dict())
    for learner in (resumed, replace(first, ppo=first.ppo)):
        for _ in range(2):
            found = learner.step()
        assert without_times(found) == without_times(expected)
        assert same(learner.theta, whole.theta)
    assert first.iteration == 2  # which a learner that continues from a copy of its state has not changed


def test_threads_change_not_a_bit(two_threads):
    def stepped():
        learner = trial_learner(Navigation2D(5), num_tasks=20, task_chunk=4, threads=2)
        learner.step()
        return learner.theta

    found = stepped()
    torch.set_num_threads(1)
    assert same(found, stepped())


def test_what_a_step_tells():
    learner = trial_learner(Navigation2D(5))
    metrics = learner.step()
    played, _ = trial_learner(Navigation2D(5)).play(
        learner.task_distribution.sample(5, _generator(learner, 0)), purpose="train"
    )
    assert metrics["return/step_0"] == pytest.approx(played.returns[:, 0].mean().item())
    assert metrics["return/step_1"] == pytest.approx(played.returns[:, 1].mean().item())
    assert metrics["return/trial"] == pytest.approx(metrics["return/step_0"] + metrics["return/step_1"])
    assert (metrics["iteration"], metrics["env_steps"], metrics["episodes"]) == (1, 50, 10)
    assert (metrics["episode_length"], metrics["failed_episodes"]) == (5, 0)
    assert {"policy_std", "kl", "entropy", "value_loss", "explained_variance", "seconds/rollout"} <= metrics.keys()


def test_rewards_have_bonus_and_penalty_for_learning_alone():
    plain = trial_learner(Navigation2D(5))
    other = trial_learner(Navigation2D(5), advantages=Advantages(gae_lambda=0.7, bounds_penalty=1.0, survival_bonus=2))
    first, second = plain.step(), other.step()
    assert first["return/trial"] == second["return/trial"]
    assert not same(plain.theta, other.theta)


def test_returns_are_measured_in_a_moving_average_of_their_standard_deviation():
    learner = trial_learner()
    variances = []
    for _ in range(3):
        tasks = learner.task_distribution.sample(5, _generator(learner, learner.iteration))
        played, _ = learner.play(tasks, purpose="train", iteration=learner.iteration)
        rewards = played.rewards.transpose(1, 2).flatten(1).double()  # (M, E * T), as no episode ends early
        powers = 0.99 ** torch.arange(8.0).double()
        to_go = torch.stack([(rewards[:, t:] * powers[: 8 - t]).sum(dim=1) for t in range(8)])
        variances.append(to_go.var(correction=0).item())
        learner.step()
    weights = 0.9 ** np.arange(2, -1, -1)
    found = learner.state.outer["returns"]
    assert found["count"] == 3
    expected = np.average(variances, weights=weights)
    assert found["variance"].item() / (1 - 0.9**3) == pytest.approx(expected, rel=1e-5)


def _generator(learner, iteration):
    return keyed_generator(learner.seed, "train/tasks", iteration)


def test_a_step_that_fails_changes_nothing(monkeypatch):
    learner, twin = trial_learner(), trial_learner()
    before = learner.state_dict()

    def fails(*arguments):
        raise NonFiniteError("such as a reward")

    with monkeypatch.context() as patched:
        patched.setattr("metarl.rl.rl2.ppo.adam_step", fails)
        with pytest.raises(NonFiniteError):
            learner.step()
    assert learner.iteration == 0
    assert same(learner.state_dict()["theta"], before["theta"])
    assert without_times(learner.step()) == without_times(twin.step())


def test_the_policy_of_the_caller_stays_as_it_is():
    policy = recurrent(BernoulliBandits(3, 4))
    before = {name: value.detach().clone() for name, value in policy.named_parameters()}
    learner = trial_learner(policy=policy)
    learner.step()
    assert same(before, dict(policy.named_parameters()))
    assert not same(before, learner.theta)


def test_frozen_parameters_stay_as_they_are():
    policy = recurrent(BernoulliBandits(3, 4))
    policy.gru.weight_ih_l0.requires_grad_(False)
    learner = trial_learner(policy=policy)
    learner.step()
    assert "gru.weight_ih_l0" not in learner.theta
    assert torch.equal(learner.policy.gru.weight_ih_l0, policy.gru.weight_ih_l0)
    assert "gru.weight_ih_l0" in learner.state_dict()["constants"]


def test_other_states_are_refused_and_change_nothing():
    learner = trial_learner()
    other = trial_learner(policy=recurrent(BernoulliBandits(3, 4), memory_size=5)).state_dict()
    before = learner.theta
    for state in (other, {name: value for name, value in other.items() if name != "outer"}):
        with pytest.raises(ValueError, match="the state"):
            learner.load_state_dict(state)
        assert same(learner.theta, before)


def test_environments_are_closed_and_opened_again(monkeypatch):
    with trial_learner() as learner:
        learner.step()
        envs = learner._lanes.of(5)
    assert learner._lanes.of(5) is not envs


def test_all_of_a_rollout_is_named_by_seed_purpose_and_iteration(monkeypatch):
    keys, call = [], TrialRollout.__call__

    def noted(self, envs, tasks, key, *others):
        keys.append((key.seed, key.purpose, key.iteration))
        return call(self, envs, tasks, key, *others)

    monkeypatch.setattr(TrialRollout, "__call__", noted)
    learner = trial_learner(seed=8)
    learner.step()
    learner.step()
    learner.evaluate(3)
    assert keys == [(8, "train", 0), (8, "train", 1), (8, "test", 0)]
