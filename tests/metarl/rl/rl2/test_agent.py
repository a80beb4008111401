"""Agents with a memory: they act as the policy did in trials, and their files hold what they remember."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import nn

from metarl import Agent, GaussianMLP, RecurrentAgent
from metarl.core.parameters import parameters_of
from metarl.envs import BernoulliBandits, Navigation2D
from metarl.rl.rl2.trials import to_trials
from metarl.runs import RunError
from tests.metarl.rl.agent_files import WRONG, assert_refused_with
from tests.metarl.rl.rl2.builders import recurrent, trial_learner
from tests.modes import MODES
from tests.probes import CorridorTasks

GOALS = {"goal": np.array([[0.4, 0.4], [-0.4, 0.1]])}


def navigation_learner():
    return trial_learner(Navigation2D(5), num_tasks=2, episodes=3)


def most_likely(learner, dist_params):
    """The action for the environment."""
    family = learner._rollout.action_distribution
    return family.to_environment(family.mode(dist_params).numpy())


@pytest.mark.parametrize(
    ("learner", "tasks"),
    [
        (navigation_learner(), GOALS),
        (trial_learner(CorridorTasks(6), episodes=3), {"length": np.array([2, 9])}),
        (trial_learner(BernoulliBandits(3, 4)), {"probabilities": np.array([[0.1, 0.9, 0.5], [0.6, 0.2, 0.3]])}),
    ],
    ids=["navigation", "corridor", "bandits"],
)
def test_an_agent_remembers_the_episodes_before_a_step_of_an_evaluation(learner, tasks):
    """Its action is that of the rollout, whose memory went through the same episodes."""
    evaluation = learner.evaluate(tasks, episodes=3, trials_per_task=2)
    for number, at in enumerate(evaluation.path):
        for task in (0, 1):
            observation = at.episodes.observations[task, 0, 0].numpy()  # of the first trial
            action = learner.agent(at, task)(observation)
            expected = most_likely(learner, at.episodes.dist_params[task, 0, 0])
            np.testing.assert_allclose(action, expected, atol=1e-6)
            if number and isinstance(learner.task_distribution, Navigation2D):
                others = [learner.agent()(observation), learner.agent(evaluation.path[number - 1], task)(observation)]
                assert not any(np.allclose(action, other, atol=1e-6) for other in others)


def test_an_agent_that_plays_a_trial_acts_as_the_policy_on_the_whole_sequence():
    learner = navigation_learner()
    [trial], _ = [learner.play({"goal": GOALS["goal"][:1]}, 2)[:1], None]
    trials = to_trials(trial, trial.rewards, torch.zeros_like(trial.rewards), learner._rollout.action_distribution)
    agent, inputs, previous = learner.agent(), [], [0.0] * 4  # an action, its reward, whether it ended an episode
    for step in range(10):
        observation = trials.inputs[0, step, :2].numpy()
        inputs.append([*observation, *previous])
        dist_params, _, _ = learner.policy(torch.tensor([inputs], dtype=torch.float32))
        action = agent(observation)
        np.testing.assert_allclose(action, most_likely(learner, dist_params[0, -1].detach()), atol=1e-6)
        reward, ended = 0.3 * step, step in (4, 9)
        agent.observe(reward, ended)
        previous = [*dist_params[0, -1, :2].tolist(), reward, float(ended)]
    agent.begin_trial()
    first = trials.inputs[0, 0, :2].numpy()
    np.testing.assert_array_equal(agent(first), learner.agent()(first))


def test_what_an_action_brought_must_be_told_once():
    agent, observation = trial_learner().agent(), np.ones(1)
    with pytest.raises(RuntimeError, match="no action"):
        agent.observe(1.0, False)
    agent(observation)
    with pytest.raises(RuntimeError, match="observe"):
        agent(observation)
    with pytest.raises(RuntimeError, match="observe"):
        agent.save("never.pt")
    agent.observe(1.0, False)
    agent(observation)


def test_an_agent_without_memory_takes_no_note():
    space = Box(-1.0, 1.0, (2,))
    policy = GaussianMLP(space, space, (4,))
    agent = Agent(policy, parameters_of(policy), space, (2,))
    before = agent(np.ones(2))
    agent.observe(5.0, True)
    np.testing.assert_array_equal(agent(np.ones(2)), before)


def test_an_agent_needs_a_task_that_is_there():
    learner = navigation_learner()
    with pytest.raises(ValueError, match=r"^task = 2"):
        learner.agent(learner.evaluate(GOALS).path[0], task=2)


@pytest.fixture
def remembering():
    learner = navigation_learner()
    return learner.agent(learner.evaluate(GOALS).path[-1])


def test_a_loaded_agent_remembers_and_acts_the_same(remembering, tmp_path):
    path = tmp_path / "agent.pt"
    remembering.save(path)
    loaded = RecurrentAgent.load(path)
    for step, observation in enumerate(np.random.default_rng(0).normal(size=(6, 2))):
        np.testing.assert_array_equal(loaded(observation), remembering(observation))
        for agent in (loaded, remembering):
            agent.observe(step, step == 3)
    for agent in (loaded, remembering):
        agent.begin_trial()
        agent.save(path)
        np.testing.assert_array_equal(RecurrentAgent.load(path)(np.ones(2)), loaded(np.ones(2)))
        loaded.begin_trial()


def test_a_drawn_action_repeats_with_a_seed(remembering, tmp_path):
    remembering.save(tmp_path / "agent.pt")
    acts = [
        RecurrentAgent.load(tmp_path / "agent.pt")(np.ones(2), deterministic=False, seed=seed) for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(acts[0], acts[1])
    assert not np.array_equal(acts[0], acts[2])


def test_kinds_of_agents_are_not_mixed_up(remembering, tmp_path):
    remembering.save(tmp_path / "recurrent.pt")
    with pytest.raises(RunError, match="RecurrentAgent"):
        Agent.load(tmp_path / "recurrent.pt")
    space = Box(-1.0, 1.0, (2,))
    policy = GaussianMLP(space, space, (4,))
    Agent(policy, parameters_of(policy), space, (2,)).save(tmp_path / "agent.pt")
    with pytest.raises(RunError, match="RecurrentAgent"):
        RecurrentAgent.load(tmp_path / "agent.pt")


class Own(nn.Module):
    """A policy of one's own."""

    def __init__(self, policy):
        super().__init__()
        self.inner = policy

    def forward(self, inputs, memory=None):
        return self.inner(inputs, memory)


def test_a_policy_of_ones_own_must_be_given(tmp_path):
    distribution = Navigation2D(5)
    learner = trial_learner(distribution, policy=Own(recurrent(distribution)), num_tasks=2, episodes=3)
    agent = learner.agent(learner.evaluate(GOALS).path[-1])
    agent.save(tmp_path / "agent.pt")
    with pytest.raises(RunError, match="Own"):
        RecurrentAgent.load(tmp_path / "agent.pt")
    loaded = RecurrentAgent.load(tmp_path / "agent.pt", Own(recurrent(distribution)))
    np.testing.assert_array_equal(loaded(np.ones(2)), agent(np.ones(2)))


@pytest.mark.parametrize("wrong", WRONG, ids=lambda of: type(of).__name__)
@pytest.mark.parametrize(
    "path",
    [
        ("kind",),
        ("agent",),
        ("agent", "kind"),
        ("agent", "memory_size"),
        ("agent", "hidden_sizes"),
        ("agent", "activation"),
        ("parameters", "gru.weight_hh_l0"),
        ("carried",),
        ("carried", "memory"),
        ("carried", "actions"),
        ("carried", "rewards"),
    ],
    ids="-".join,
)
def test_a_file_with_other_content_is_refused_in_one_line(path, wrong, remembering, tmp_path):
    assert_refused_with(remembering, path, wrong, tmp_path / "agent.pt")


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_caller_change_nothing(mode, remembering):
    learner = navigation_learner()
    at, observation = learner.evaluate(GOALS).path[-1], np.ones(2)
    with MODES[mode]():
        agent = learner.agent(at)
        acts = [agent(observation)]
        agent.observe(0.5, False)
    acts.append(agent(observation))
    expected = [remembering(observation)]
    remembering.observe(0.5, False)
    expected.append(remembering(observation))
    np.testing.assert_array_equal(acts, expected)
