"""The checks that run when a learner is made: they warn of what trains in silence otherwise, and change no number."""

import warnings

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from metarl import CategoricalMLP
from metarl.envs import BernoulliBandits, GymnasiumTasks, HalfCheetahDirection, Navigation2D
from metarl.rl.quick_checks import quick_check
from metarl.rl.task_checks import check
from tests.builders import make_learner, navigation_learner, without_times
from tests.probes import CorridorTasks


def sample(count, rng):
    return {"length": rng.uniform(0.3, 1.5, count), "force": rng.choice([-10.0, 10.0], count)}


def set_task(cart_pole, task):
    cart_pole.length, cart_pole.force_mag = task["length"], task["force"]


def set_misspelt(cart_pole, task):
    cart_pole.lenght, cart_pole.force_mag = task["length"], task["force"]


def set_nothing(cart_pole, task):
    cart_pole.lenght, cart_pole.force = task["length"], task["force"]


def cart_poles(setter):
    return GymnasiumTasks("CartPole-v1", sample, setter, horizon=30)


def cart_pole_learner(setter):
    distribution = cart_poles(setter)
    policy = CategoricalMLP(distribution.observation_space, distribution.action_space, (4,))
    return make_learner(distribution, policy, num_tasks=2, episodes_per_task=2)


@pytest.mark.parametrize(
    "distribution",
    [
        Navigation2D(5),
        HalfCheetahDirection("paper", 5),
        cart_poles(set_task),
        CorridorTasks(10, AutoresetMode.SAME_STEP),
        CorridorTasks(10, AutoresetMode.NEXT_STEP),
        BernoulliBandits(2, 6),  # where some episodes are the same by chance
    ],
    ids=lambda of: type(of).__name__,
)
def test_nothing_is_said_of_sound_distributions(distribution):
    assert quick_check(distribution) == []


@pytest.mark.parametrize(("setter", "idle"), [(set_misspelt, ["length"]), (set_nothing, ["length", "force"])])
def test_each_parameter_that_changes_nothing_is_named(setter, idle):
    found = quick_check(cart_poles(setter))
    assert [defect.split("'")[1] for defect in found] == idle
    assert all("changes nothing" in defect for defect in found)
    with pytest.warns(UserWarning, match="changes nothing") as given:
        cart_pole_learner(setter).close()
    assert len(given) == len(idle)
    assert given[0].filename == make_learner.__code__.co_filename  # where the learner is made


def test_the_checker_names_them_too():
    [defect] = check(cart_poles(set_misspelt))
    assert "'length' changes nothing" in defect


def test_one_task_for_all_is_named():
    class Constant(Navigation2D):
        def sample(self, count, rng):
            return {"goal": np.full((count, 2), 0.25)}

    assert quick_check(Constant(5)) == ["sample gives the same task every time"]


def test_a_batch_that_fails_is_named():
    class Broken(Navigation2D):
        def make(self, num_envs, threads=1):
            raise RuntimeError("no memory")

    assert quick_check(Broken(5)) == ["make(2, 1) fails: RuntimeError: no memory"]
    with pytest.warns(UserWarning, match="Broken: make"):
        make_learner(Broken(5), navigation_learner().policy)


def test_a_learner_that_continues_from_a_state_is_not_examined_again(monkeypatch):
    learner = navigation_learner()
    with monkeypatch.context() as patched:
        patched.setattr("metarl.rl.learner_checks.quick_check", lambda distribution: pytest.fail("examined"))
        navigation_learner(state=learner.state)


def test_the_checks_change_no_number(monkeypatch):
    state = np.random.get_state()[1].copy()  # noqa: NPY002  # the stream that strangers share
    expected = without_times(navigation_learner().step())
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    monkeypatch.setattr("metarl.rl.learner_checks.quick_check", lambda distribution: [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert without_times(navigation_learner().step()) == expected
