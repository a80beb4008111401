"""A learner computes the same whatever torch's global modes are, and whatever others do with its policy."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from metarl import GaussianMLP, Learner, Sampling
from metarl.envs import Navigation2D
from tests.modes import MODES as GLOBAL_MODES

GOALS = {"goal": np.array([[0.2, 0.1], [-0.3, 0.4]])}


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES = {
    **GLOBAL_MODES,
    "deterministic": deterministic,
}


def build_policy(distribution):
    torch.manual_seed(0)
    return GaussianMLP(distribution.observation_space, distribution.action_space, (16,))


def everything(learner):
    """What every public entry point gives, after one meta-iteration."""
    step = learner.step()
    path = learner.adapt(GOALS, 1)
    vector = torch.cat([value.reshape(-1) for value in learner.theta.values()])
    loss, gradient = learner.objective(path).loss_and_gradient(vector)
    action = learner.agent(path[-1])(np.zeros(2))
    return step["return/step_1"], step["loss_after"], loss.item(), gradient.sum().item(), action.tolist()


@pytest.fixture(scope="module")
def expected():
    distribution = Navigation2D(20)
    policy = build_policy(distribution)
    return policy, everything(Learner(distribution, policy, Sampling(num_tasks=3, episodes_per_task=4)))


@pytest.mark.parametrize("mode", MODES)
def test_global_modes_change_nothing(expected, mode):
    policy, values = expected
    with MODES[mode]():
        learner = Learner(Navigation2D(20), policy, Sampling(num_tasks=3, episodes_per_task=4))
        assert everything(learner) == values


def test_an_agent_acts_in_another_thread_while_the_learner_learns():
    distribution = Navigation2D(20)
    learner = Learner(distribution, build_policy(distribution), Sampling(num_tasks=3, episodes_per_task=4))
    agent = learner.agent(learner.adapt(GOALS, 1)[-1])
    expected, wrong, stop = agent(np.full(2, 0.1)), [], threading.Event()

    def act():
        while not stop.is_set():
            if not np.array_equal(agent(np.full(2, 0.1)), expected):
                wrong.append(1)

    thread = threading.Thread(target=act)
    thread.start()
    for _ in range(5):
        learner.step()
    stop.set()
    thread.join()
    assert wrong == []


def test_two_learners_of_one_policy_do_not_meet():
    distribution = Navigation2D(20)
    policy = build_policy(distribution)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    one, other = (Learner(distribution, policy, Sampling(num_tasks=3, episodes_per_task=4)) for _ in range(2))
    alone = Learner(distribution, policy, Sampling(num_tasks=3, episodes_per_task=4))
    alone_metrics = [alone.step()["return/step_1"] for _ in range(3)]
    for value in alone_metrics:
        assert one.step()["return/step_1"] == value
        assert other.step()["return/step_1"] == value
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_another_number_of_tasks_than_asked_for_is_refused():
    distribution = Navigation2D(20)
    learner = Learner(distribution, build_policy(distribution), Sampling(num_tasks=4, episodes_per_task=2))
    sample = distribution.sample
    distribution.sample = lambda count, rng: {"goal": sample(count, rng)["goal"][:2]}
    with pytest.raises(ValueError, match="returned 2 tasks"):
        learner.step()
    assert learner.iteration == 0
