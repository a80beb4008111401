"""What must change nothing: task chunks, threads, copies of the learner, compiled and recorded policies."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from metarl import PPO, TRPO
from metarl.core import recording
from tests.builders import navigation_learner, same, without_times


@pytest.mark.parametrize("chunk", [1, 3])
def test_task_chunks_change_nothing(chunk):
    whole, parts = navigation_learner(task_chunk=4), navigation_learner(task_chunk=chunk)
    metrics = [without_times(learner.step()) for learner in (whole, parts)]
    for name in metrics[0]:
        assert metrics[1][name] == pytest.approx(metrics[0][name], rel=1e-6, abs=1e-12), name
    assert same(parts.theta, whole.theta)


def test_the_same_seed_gives_the_same_run_and_another_one_does_not():
    runs = []
    for seed in (1, 1, 2):
        learner = navigation_learner(seed=seed)
        runs.append(([without_times(learner.step()) for _ in range(2)], learner.theta))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])
    assert not same(runs[0][1], runs[2][1])


def test_a_compiled_policy_learns_as_the_plain_one():
    plain, compiled = navigation_learner(), torch.compile(navigation_learner().policy, backend="aot_eager")
    compiled = replace(plain, policy=compiled, state=None)
    metrics = [without_times(learner.step()) for learner in (plain, compiled)]
    assert metrics[0] == metrics[1]
    assert all(torch.equal(*pair) for pair in zip(plain.theta.values(), compiled.theta.values(), strict=True))


@pytest.mark.parametrize("outer", [TRPO(hvp_sample_fraction=0.5), PPO(0.01)], ids=["trpo", "ppo"])
def test_threads_change_nothing(outer, restored_threads):
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        learner = navigation_learner(outer=outer, task_chunk=2)
        results.append(([without_times(learner.step()) for _ in range(2)], learner.theta))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


def copied(learner):
    return copy.deepcopy(learner)


def pickled(learner):
    return pickle.loads(pickle.dumps(learner))


@pytest.mark.parametrize("duplicate", [copied, pickled, replace], ids=["deepcopy", "pickle", "replace"])
@pytest.mark.parametrize("outer", [TRPO(), PPO(0.01)], ids=["trpo", "ppo"])
def test_a_copy_of_a_learner_continues_identically_and_apart(duplicate, outer):
    learner = navigation_learner(outer=outer, horizon=60)  # long enough for recordings
    env_steps = learner.step()["env_steps"]
    other = duplicate(learner)
    theta = {name: value.clone() for name, value in other.theta.items()}
    expected = [without_times(learner.step()) for _ in range(2)]
    assert same(other.theta, theta)
    assert (other.iteration, other.env_steps) == (1, env_steps)
    assert [without_times(other.step()) for _ in range(2)] == expected
    assert same(other.theta, learner.theta)


def test_a_policy_is_recorded_for_shared_and_for_adapted_parameters_once_for_all_iterations(monkeypatch):
    made, split = [], recording._split_recording
    monkeypatch.setattr(recording, "_split_recording", lambda *arguments: made.append(1) or split(*arguments))
    learner = navigation_learner(horizon=60)
    for _ in range(3):
        learner.step()
    assert len(made) == 2
