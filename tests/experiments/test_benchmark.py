"""The benchmark: parts and what the machine could do at best, on sizes that take no time."""

import json

import pytest

from metarl.experiments import benchmark
from metarl.experiments.runner import benchmarks
from metarl.experiments.runner.benchmarks import with_floors
from tests.experiments.runner.helpers import error_of

TINY = ["--recipe", "paper", "--num-tasks", "2", "--episodes-per-task", "2", "--horizon", "3", "--threads", "1"]


@pytest.fixture(autouse=True)
def small_product(monkeypatch):
    monkeypatch.setattr(benchmarks, "matrix_product", lambda device: lambda: 1e9)


def spread(median):
    return {"median": median, "min": median, "max": median}


def test_floors_are_operations_at_the_speed_of_a_product_and_steps_at_that_of_the_physics(monkeypatch):
    monkeypatch.setattr(benchmarks, "flops_of", lambda call: call())
    parts = {
        "update_seconds": lambda: 40,
        "meta_iteration_seconds": lambda: 60,
        "1_steps/task_by_task_seconds": lambda: 1,
        "rollout_steps_per_s": lambda: 1,
        "matrix_product_flops": lambda: 1,
    }
    found = {name: spread(2.0) for name in parts} | {"matrix_product_flops": spread(100.0), "peak_memory_mb": 5}
    plain = with_floors(found, parts, 30)
    assert plain["update_seconds"] == {**spread(2.0), "flops": 40, "floor": 0.4, "share_of_floor": 0.2}
    assert plain["meta_iteration_seconds"]["floor"] == 0.6
    assert plain["rollout_steps_per_s"] == spread(2.0)
    physical = with_floors({**found, "physics_open_loop_steps_per_s": spread(10.0)}, parts, 30)
    assert physical["meta_iteration_seconds"]["floor"] == pytest.approx(3.6)
    assert physical["update_seconds"]["floor"] == 0.4
    assert physical["rollout_steps_per_s"] == {**spread(2.0), "floor": 10.0, "share_of_floor": 0.2}
    for name in ("1_steps/task_by_task_seconds", "matrix_product_flops", "peak_memory_mb"):
        assert physical[name] == found[name]


@pytest.mark.parametrize("name", ["navigation_2d", "half_cheetah_direction"])
def test_a_learner_is_timed_in_parts(name, capsys):
    benchmark.main([name, "--repeats", "1", "--json", *TINY])
    found = json.loads(capsys.readouterr().out)
    update, whole = found["update_seconds"], found["meta_iteration_seconds"]
    assert update["share_of_floor"] == pytest.approx(update["flops"] / 1e9 / update["median"])
    assert min(whole["flops"], update["flops"]) > 1e5
    if name == "half_cheetah_direction":
        steps = 2 * 2 * 2 * 3  # tasks, episodes, before and after the inner step, time steps
        physics = found["physics_open_loop_steps_per_s"]["median"]
        assert whole["floor"] == pytest.approx(whole["flops"] / 1e9 + steps / physics)
        assert found["batch_steps_per_s"]["floor"] == physics
    assert found["sizes"] == "2 tasks x 2 episodes x 3 steps"


def test_the_table_says_how_near_a_part_is_to_its_floor(capsys):
    benchmark.main(["sine", "--repeats", "1", "--num-tasks", "2", "--threads", "1"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "of what is possible" in lines["1_steps/seconds"]
    assert "of what is possible" not in lines["1_steps/task_by_task_seconds"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["omniglott"], "the nearest is omniglot"),
        (["sine", "--repeats", "0"], "--repeats = 0; allowed: at least 1"),
        (["sine", "--shotz", "1"], "--shotz"),
    ],
)
def test_bad_input_gets_one_line(words, named, capsys):
    assert named in error_of(capsys, benchmark.main, words)
