"""Learning on small problems whose best behaviour is known."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from metarl import (
    TRPO,
    CategoricalMLP,
    GaussianMLP,
    GradientDescent,
    keyed_generator,
)
from metarl.envs import GymnasiumTasks, choose_from
from metarl.rl.evaluation import evaluate, held_out_tasks
from tests.builders import make_learner, navigation_learner
from tests.probes import CorridorTasks


def test_without_inner_steps_the_learner_is_plain_trpo():
    learner = navigation_learner(rule=GradientDescent(0.5, inner_steps=0), outer=TRPO(hvp_sample_fraction=1.0))
    tasks = held_out_tasks(learner, 40)
    before = evaluate(learner, tasks, 0, 5).mean
    metrics = [learner.step() for _ in range(8)]
    assert "return/step_1" not in metrics[0]
    assert evaluate(learner, tasks, 0, 5).mean > before + 0.5


def test_discrete_actions_learn_what_pays():
    """The best action of a corridor is always 2; its return is known."""
    distribution = CorridorTasks()
    torch.manual_seed(0)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (8,), "tanh")
    learner = make_learner(
        distribution, policy, num_tasks=4, episodes_per_task=10, rule=GradientDescent(0.1), outer=TRPO(max_kl=0.1)
    )
    for _ in range(40):
        metrics = learner.step()
    lengths = np.minimum(distribution.sample(4, keyed_generator(0, "train/tasks", 39))["length"], 6)
    best = (2 * lengths * (lengths + 1) / 2).mean()
    assert metrics["return/step_1"] > 0.9 * best


def test_meta_learning_makes_one_gradient_step_worth_more():
    learner = navigation_learner(horizon=30, num_tasks=10, episodes_per_task=10)
    tasks = held_out_tasks(learner, 20)
    before = evaluate(learner, tasks, 1, 10).mean
    for _ in range(15):
        learner.step()
    after = evaluate(learner, tasks, 1, 10).mean
    assert after[1] > before[1] + 3
    assert after[1] - after[0] > before[1] - before[0] + 1


class Indifferent(gymnasium.Env):
    """All actions are worth the same."""

    observation_space, action_space = Box(0, 1, (1,)), Box(-2, 4, (1,))

    def reset(self, *, seed=None, options=None):
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), 0.0, False, False, {}


@pytest.mark.filterwarnings("ignore:.*changes nothing")  # its tasks are one and the same
@pytest.mark.parametrize(("penalty", "within"), [(0.0, False), (1.0, True)])
def test_a_penalty_brings_a_policy_back_within_the_bounds_of_its_actions(penalty, within):
    distribution = GymnasiumTasks(Indifferent, choose_from({"task": np.arange(2)}), lambda env, task: None, horizon=4)
    torch.manual_seed(0)
    policy = GaussianMLP(distribution.observation_space, distribution.action_space, (4,), "tanh")
    with torch.no_grad():
        dict(policy.named_parameters())["mean.2.bias"].fill_(3)
    rule, outer = GradientDescent(0.01), TRPO(max_kl=0.1, hvp_sample_fraction=1.0)
    learner = make_learner(
        distribution, policy, num_tasks=2, episodes_per_task=50, rule=rule, outer=outer, bounds_penalty=penalty
    )
    [[before, _]] = torch.func.functional_call(policy, learner.theta, torch.ones(1))
    for _ in range(20):
        learner.step()
    [[mean, _]] = torch.func.functional_call(policy, learner.theta, torch.ones(1))
    assert before > 2
    assert mean < 1 if within else mean == before


class Toil(gymnasium.Env):
    """Every step costs 1; action 1 ends the episode."""

    observation_space, action_space = Box(0, 1, (1,)), Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), -1.0, bool(action == 1), False, {}


@pytest.mark.filterwarnings("ignore:.*changes nothing")  # its tasks are one and the same
@pytest.mark.parametrize(("bonus", "longest"), [(0.0, False), (2.0, True)])
def test_a_bonus_for_survival_makes_ending_an_episode_early_unattractive(bonus, longest):
    distribution = GymnasiumTasks(Toil, choose_from({"task": np.arange(2)}), lambda env, task: None, horizon=8)
    torch.manual_seed(0)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (4,), "tanh")
    learner = make_learner(
        distribution, policy, num_tasks=2, episodes_per_task=20, outer=TRPO(max_kl=0.1), survival_bonus=bonus
    )
    for _ in range(40):
        metrics = learner.step()
    assert metrics["return/step_1"] == pytest.approx(-metrics["episode_length"])
    assert metrics["episode_length"] > 7 if longest else metrics["episode_length"] < 1.2
