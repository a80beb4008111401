"""Meta-World through its own environments, in an installation that has it: pip install '.[meta-world,dev]'."""

import pickle

import gymnasium
import numpy as np
import pytest

metaworld = pytest.importorskip("metaworld")

from metarl.check import check  # noqa: E402
from metarl.envs.meta_world import MetaWorld  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Meta-World's own


def goals(tasks):
    return {tuple(pickle.loads(task.data)["rand_vec"]) for task in tasks}


@pytest.fixture(scope="module")
def reach():
    return MetaWorld("ML1", "reach-v3")


def test_lanes_equal_meta_worlds_environment(reach):
    tasks = reach.sample(2, np.random.default_rng(0))
    batch = reach.make(4)
    observations, _ = batch.reset(seed=[0, 1, 2, 3], options={"tasks": tasks})
    singles = [reach.benchmark.train_classes["reach-v3"]() for _ in range(4)]
    for lane, single in enumerate(singles):
        single.set_task(reach.tasks[tasks["task"][lane // 2]])
        np.testing.assert_array_equal(observations[lane], single.reset()[0])
    ends = np.zeros(4, bool)
    for action in np.random.default_rng(0).uniform(-1, 1, (500, 4, 4)).astype(np.float32):
        assert not ends.any()
        observations, rewards, terminated, ends, infos = batch.step(action)
        for lane, single in enumerate(singles):
            expected = single.step(action[lane])
            np.testing.assert_array_equal(observations[lane], expected[0])
            assert (rewards[lane], terminated[lane], ends[lane]) == expected[1:4]
            assert infos["success"][lane] == expected[4]["success"]
    assert ends.all()
    assert (observations[:, -3:] == 0).all()  # the goal is hidden


def test_training_and_test_tasks_are_the_benchmarks_and_apart(reach):
    train, test = reach.sample(40, np.random.default_rng(0)), reach.sample_test(50, np.random.default_rng(0))
    validation = reach.sample_validation(10, np.random.default_rng(0))
    assert sorted(train["task"]) == list(range(40))
    assert sorted(validation["task"]) == list(range(40, 50))
    assert sorted(test["task"]) == list(range(50, 100))
    chosen = [{reach.tasks[i].data for i in tasks["task"]} for tasks in (train, test)]
    chosen[0] |= {reach.tasks[i].data for i in validation["task"]}
    assert chosen[0] == {task.data for task in reach.benchmark.train_tasks}
    assert chosen[1] == {task.data for task in reach.benchmark.test_tasks}
    assert not goals(reach.benchmark.train_tasks) & goals(reach.benchmark.test_tasks)


def test_the_registered_training_id_serves_test_tasks(reach):
    """Why the registered ids are not used; if this fails, Meta-World has mended it."""
    served = gymnasium.make_vec("Meta-World/ML1-train", env_name="reach-v3", seed=0, meta_batch_size=10)
    shown = goals([task for env in served.envs for task in env.get_wrapper_attr("tasks")])
    assert shown == goals(reach.benchmark.test_tasks)
    assert all(env.get_wrapper_attr("terminate_on_success") for env in served.envs)


def test_the_checker_only_says_that_objects_show_where_they_lie():
    short = MetaWorld("ML1", "reach-v3", horizon=20, validation_goals=0)
    assert check(short) == [
        "the task is visible in the observation: component 4 of the first one changes with the task alone"
    ]


def test_lanes_change_between_environments_as_tasks_do(monkeypatch):
    monkeypatch.setattr(metaworld, "_N_GOALS", 2)
    benchmark = metaworld.CustomML(["reach-v3", "push-v3", "drawer-open-v3"], ["door-close-v3"], seed=0)
    monkeypatch.setattr(metaworld, "ML10", lambda seed: benchmark)
    many = MetaWorld("ML10", horizon=5, validation_goals=1)
    assert many.name == "ML10"
    assert set(many.names(many.sample(30, np.random.default_rng(0)))) == {"reach-v3", "push-v3", "drawer-open-v3"}
    assert set(many.sample(30, np.random.default_rng(0))["task"]) == {0, 2, 4}
    assert sorted(many.sample_validation(3, np.random.default_rng(0))["task"]) == [1, 3, 5]
    names = many.names(many.sample(6, np.random.default_rng(0)))
    assert names == ["reach-v3"] * 2 + ["push-v3"] * 2 + ["drawer-open-v3"] * 2
    assert {many.tasks[i].env_name for i in many.sample_test(2, np.random.default_rng(0))["task"]} == {"door-close-v3"}
    batch = many.make(2)
    for order in ([0, 2], [4, 0], [6, 6], [2, 4]):
        observations, _ = batch.reset(seed=0, options={"tasks": {"task": np.array(order)}})
        for lane, number in enumerate(order):
            single = benchmark.train_classes.get(many.tasks[number].env_name, None)
            single = (single or benchmark.test_classes[many.tasks[number].env_name])()
            single.set_task(many.tasks[number])
            np.testing.assert_array_equal(observations[lane], single.reset()[0])


def test_ml25_has_basketball_in_both_of_its_sets():
    """If this fails, Meta-World has changed the benchmark."""
    from metaworld.env_dict import ML25_V3

    assert set(ML25_V3["train"]) & set(ML25_V3["test"]) == {"basketball-v3"}


def test_the_version_of_rewards(monkeypatch):
    monkeypatch.setattr(metaworld, "_N_GOALS", 2)
    found = []
    for version in ("v1", "v2"):
        batch = MetaWorld("ML1", "reach-v3", horizon=5, reward_version=version, validation_goals=0).make(1)
        batch.reset(seed=0, options={"tasks": {"task": np.array([0])}})
        found.append(batch.step(np.zeros((1, 4), np.float32))[1][0])
    assert found[0] == 0.0  # no nearer than the start
    assert 1 < found[1] < 10


def test_unknown_names_get_one_line():
    with pytest.raises(ValueError, match=r"^reward_version = 'v3'; allowed: v2, v1$"):
        MetaWorld(reward_version="v3")
    with pytest.raises(ValueError, match=r"^validation_goals = 50; allowed: 0 to 49$"):
        MetaWorld(validation_goals=50)
    with pytest.raises(ValueError, match=r"^benchmark = 'ML2'; allowed: ML1, ML10, ML25, ML45$"):
        MetaWorld("ML2")
    with pytest.raises(
        ValueError, match=r"^env = 'raech-v3'; allowed: Meta-World's 50 names; the nearest is reach-v3$"
    ):
        MetaWorld("ML1", "raech-v3")
