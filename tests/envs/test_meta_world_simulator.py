"""Meta-World's environments, faster, against its own: every bit of the trajectories."""

import time

import numpy as np
import pytest

metaworld = pytest.importorskip("metaworld", reason="needs the extra 'meta-world'")

from scipy.spatial.transform import Rotation  # noqa: E402

from metarl.envs.meta_world_simulator import QuickRotation, Snapshots, faster  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Meta-World's own

# of what differs between them: views of the simulator as attributes, bodies that tasks move, and quaternions
SOME = ["reach-v3", "pick-place-v3", "door-lock-v3", "basketball-v3", "bin-picking-v3", "stick-pull-v3"]
ALL = list(metaworld.ML1.ENV_NAMES)


@pytest.fixture(autouse=True)
def few_goals(monkeypatch):
    monkeypatch.setattr(metaworld, "_N_GOALS", 2)


def assert_same_trajectories(name, steps, reward_version):
    """Two plain environments and two faster ones of two tasks, in lockstep; after a reset each has the other's task."""
    benchmark = metaworld.ML1(name, seed=0)
    cls, tasks, snapshots = benchmark.train_classes[name], benchmark.train_tasks, Snapshots()
    plain = [cls(reward_function_version=reward_version) for _ in tasks]
    quick_cls = faster(cls)
    quick = [quick_cls(reward_function_version=reward_version) for _ in tasks]
    assert quick[0].model is quick[1].model
    scripted = scripted_policy(name)
    rng = np.random.default_rng(0)
    for order in ((0, 1), (1, 0), (0, 1)):
        now = []
        for lane, number in enumerate(order):
            plain[lane].set_task(tasks[number])
            quick[lane].set_task(tasks[number])
            expected, _ = plain[lane].reset()
            np.testing.assert_array_equal(snapshots.reset(quick[lane], number), expected)
            now.append(expected)
        for _ in range(steps):
            for lane in range(2):
                action = rng.uniform(-1, 1, 4).astype(np.float32)
                if lane == 0:  # the other one only moves at random
                    action = np.clip(scripted.get_action(now[lane]), -1, 1).astype(np.float32)
                expected, found = plain[lane].step(action), quick[lane].step(action)
                np.testing.assert_array_equal(found[0], expected[0])
                assert found[1:4] == expected[1:4]
                assert found[4] == expected[4]
                np.testing.assert_array_equal(quick[lane].data.qacc_warmstart, plain[lane].data.qacc_warmstart)
                now[lane] = expected[0]


def scripted_policy(name):
    from metaworld import policies

    return policies.ENV_POLICY_MAP[name]()


@pytest.mark.parametrize("name", SOME)
def test_trajectories_equal_meta_worlds(name):
    assert_same_trajectories(name, 25, "v2")


def test_a_grasp_is_felt_as_meta_worlds_feels_it():
    benchmark = metaworld.ML1("pick-place-v3", seed=0)
    cls, task = benchmark.train_classes["pick-place-v3"], benchmark.train_tasks[0]
    plain, quick, scripted = cls(), faster(cls)(), scripted_policy("pick-place-v3")
    for env in (plain, quick):
        env.set_task(task)
    observation, felt = plain.reset()[0], []
    Snapshots().reset(quick, 0)
    for _ in range(90):
        action = np.clip(scripted.get_action(observation), -1, 1).astype(np.float32)
        observation = plain.step(action)[0]
        np.testing.assert_array_equal(quick.step(action)[0], observation)
        felt.append(plain.touching_main_object)
        assert quick.touching_main_object == felt[-1]
    assert set(felt) == {False, True}


def test_trajectories_equal_meta_worlds_with_the_first_reward():
    assert_same_trajectories("push-v3", 25, "v1")


@pytest.mark.slow
@pytest.mark.parametrize("reward_version", ["v2", "v1"])
@pytest.mark.parametrize("name", ALL)
def test_trajectories_of_all_environments(name, reward_version):
    assert_same_trajectories(name, 150, reward_version)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reach-v3", "push-v3", "pick-place-v3", "door-open-v3"])
def test_steps_per_second_against_meta_worlds(name, capsys):
    """Episodes with their resets, in turns, in time of the processor; medians."""
    benchmark = metaworld.ML1(name, seed=0)
    cls, snapshots = benchmark.train_classes[name], Snapshots()
    envs = [cls(), faster(cls)()]
    actions = np.random.default_rng(0).uniform(-1, 1, (500, 4)).astype(np.float32)
    seconds = [[], []]
    for env in envs:
        env.set_task(benchmark.train_tasks[0])
    for _ in range(4):
        for env, taken in zip(envs, seconds, strict=True):
            start = time.process_time()
            if env is envs[0]:
                env.reset()
            else:
                snapshots.reset(env, 0)
            for action in actions:
                env.step(action)
            taken.append(time.process_time() - start)
    plain, quick = (np.median(taken[1:]) for taken in seconds)  # the first reset is no snapshot's
    with capsys.disabled():
        print(f"\n{name}: {500 / plain:.0f} and {500 / quick:.0f} steps/s, {plain / quick:.1f} times as many")
    assert plain / quick > 1.7


def test_quaternions_equal_scipys():
    rng = np.random.default_rng(0)
    matrices = [*Rotation.random(300, random_state=0).as_matrix(), *Rotation.identity(1).as_matrix()]
    matrices += list(Rotation.from_euler("xyz", rng.integers(0, 4, (100, 3)) * 90, degrees=True).as_matrix())
    matrices += [matrices[0] * 1.01, matrices[1] + 1e-9]  # which scipy mends
    for matrix in matrices:
        np.testing.assert_array_equal(
            QuickRotation.from_matrix(matrix).as_quat(), Rotation.from_matrix(matrix).as_quat()
        )
