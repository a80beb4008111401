"""The contract of task distributions, as far as it can be checked without playing an episode."""

import re

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from metarl.rl.task_distribution import describe_array, describe_error, protocol_defects, record_defects
from tests.probes import CorridorTasks


def corridors_but(**changes):
    return type("Planted", (CorridorTasks,), changes)()


def test_a_sound_distribution_has_no_defects():
    assert protocol_defects(CorridorTasks(), 5) == []


def raising(self, count, rng):
    raise KeyError("no\nsuch")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sample": lambda self, n, rng: {"length": [1] * n}}, r"sample\(5\).*'length'.*list"),
        ({"sample": lambda self, n, rng: {"length": np.ones(3)}}, r"sample\(5\).*\(3,\) of float64"),
        ({"sample": lambda self, n, rng: {}}, r"sample\(5\).*dict"),
        ({"sample": raising}, r"sample\(5\) fails: KeyError"),
        ({"sample_test": raising}, r"sample_test\(5\) fails: KeyError"),
        ({"observation_space": Discrete(3)}, "observation space"),
        ({"action_space": gymnasium.spaces.MultiBinary(2)}, "action space"),
        ({"action_space": Box(0, 5, (1,), np.int64)}, "action space"),
    ],
)
def test_each_defect_is_one_line(changes, named):
    [defect] = protocol_defects(corridors_but(**changes), 5)
    assert len(defect.splitlines()) == 1
    assert re.search(named, defect)


@pytest.mark.parametrize("horizon", [0, -1, 2.5, True, "6"])
def test_a_horizon_is_a_whole_number_of_steps(horizon):
    distribution = CorridorTasks()
    distribution.horizon = horizon
    [defect] = protocol_defects(distribution, 5)
    assert defect.startswith(f"horizon = {horizon!r}")


def test_all_that_is_missing_is_named_at_once():
    class Lacking:
        horizon = 3

    [defect] = protocol_defects(Lacking(), 5)
    assert "Lacking has no sample, make, observation_space, action_space" in defect


def test_descriptions_are_one_line():
    assert describe_array(np.zeros((2, 3), np.float32)) == "(2, 3) of float32"
    assert describe_array([1]) == "as a list"
    assert describe_error(ValueError("a\n  b")) == "ValueError: a b"


def test_what_runs_record_is_named_where_it_is_missing():
    assert record_defects(CorridorTasks(), 5) == []

    class Bare:
        sample = CorridorTasks.sample

    [defect] = record_defects(Bare(), 5)
    assert defect.startswith("the task distribution Bare has no name, dynamics, task_space; ")


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"name": 3}, "name = 3; allowed: a text"),
        ({"dynamics": None}, "dynamics = None; allowed: a text"),
        ({"task_space": [1]}, "task_space = [1]; allowed: a dict of a Box"),
        ({"task_space": {"length": 3}}, "task_space = {'length': 3}; allowed: a dict of a Box"),
        ({"task_space": {"size": Box(2, 8, ())}}, "task_space has parameters of shapes {'size': ()}, sampled tasks"),
        ({"task_space": {"length": Box(2, 8, (1,))}}, "task_space has parameters of shapes {'length': (1,)}"),
    ],
)
def test_what_runs_record_is_of_the_right_kind(changes, start):
    [defect] = record_defects(corridors_but(**changes), 5)
    assert defect.startswith(start)
