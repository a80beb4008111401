"""The engine: exactness, finished lanes, blow-ups, threads, pictures."""

import os
import subprocess
import sys

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl import envs
from tests.envs.mujoco_oracle import CASES, DYNAMICS, assert_batches_equal_lanes


def make_distribution(distribution, dynamics, horizon=10_000):
    return distribution(dynamics=dynamics, horizon=horizon)


@pytest.fixture(autouse=True)
def away_from_the_repository(tmp_path, monkeypatch):
    # MuJoCo writes its warnings to a log file in the working directory
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:threads = ")
@pytest.mark.parametrize(("distribution", "dynamics"), CASES)
@pytest.mark.parametrize("steps", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_lanes_equal_mj_step(distribution, dynamics, steps):
    assert_batches_equal_lanes(make_distribution(distribution, dynamics), (1, 2, 3), steps)


@pytest.mark.parametrize(
    ("distribution", "gym_id"),
    [(envs.HalfCheetahDirection, "HalfCheetah-v5"), (envs.AntDirection, "Ant-v5")],
)
def test_gymnasium_dynamics_equal_gymnasium(distribution, gym_id):
    distribution = make_distribution(distribution, "gymnasium")
    batch = distribution.make(4, 2)
    observations, _ = batch.reset(seed=11, options={"tasks": {"direction": np.ones(1)}})
    singles = [gymnasium.make(gym_id).unwrapped for _ in range(4)]
    for i, single in enumerate(singles):
        np.testing.assert_array_equal(observations[i], single.reset(seed=11 + i)[0])
    rng = np.random.default_rng(0)
    contacts = 0
    for _ in range(100):
        actions = rng.uniform(-1, 1, (4, *distribution.action_space.shape))
        finished = batch.finished.copy()
        observations, rewards, terminated, _, _ = batch.step(actions)
        for i in np.flatnonzero(~finished):
            observation, reward, done, _, _ = singles[i].step(actions[i])
            np.testing.assert_array_equal(observations[i], observation)
            assert rewards[i] == pytest.approx(reward, abs=1e-12)
            assert terminated[i] == done
            contacts += bool(np.any(singles[i].data.cfrc_ext))
    assert contacts > 10


def test_paper_models_differ_from_gymnasiums_as_documented():
    for name, distribution, allowed in (
        ("half_cheetah", envs.HalfCheetahDirection, set()),
        ("ant", envs.AntDirection, {"geom_solimp"}),
    ):
        paper = distribution(dynamics="paper").body.model
        ours = distribution(dynamics="gymnasium").body.model
        theirs = gymnasium.make(f"{distribution.__name__.removesuffix('Direction')}-v5").unwrapped.model
        names = [field for field in dir(theirs) if isinstance(getattr(theirs, field), np.ndarray)]
        assert len(names) > 300, name
        assert not [f for f in names if not np.array_equal(getattr(ours, f), getattr(theirs, f))]
        physics = [f for f in names if not f.startswith(("_", "sensor", "name"))]
        assert {f for f in physics if not np.array_equal(getattr(paper, f), getattr(theirs, f))} == allowed
        assert ours.opt.timestep == theirs.opt.timestep == 0.01
        assert paper.opt.integrator == theirs.opt.integrator
        assert paper.opt.timestep == (0.02 if allowed else 0.01)
        assert (paper.geom_solimp[:, :3] == [0.8, 0.8, 0.01]).all() or not allowed


def test_contact_forces_of_the_paper_are_those_of_the_new_state():
    distribution = make_distribution(envs.AntDirection, "paper")
    batch = distribution.make(8)
    batch.reset(seed=0)
    touched = 0
    for _ in range(60):
        observations = batch.step(np.random.default_rng(1).uniform(-1, 1, (8, 8)))[0]
        for i in np.flatnonzero(~batch.finished):
            data = batch.simulation.get_data(i)
            mujoco.mj_forward(batch.body.model, data)
            mujoco.mj_rnePostConstraint(batch.body.model, data)
            expected = np.clip(data.cfrc_ext, -1, 1).ravel()
            # the solver starts warmer the second time, and stops within its tolerance
            np.testing.assert_allclose(observations[i, 29:113], expected, atol=1e-4)
            touched += bool(np.any(expected))
    assert touched > 50


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_finished_lanes_are_frozen(dynamics):
    distribution = make_distribution(envs.AntGoal, dynamics, horizon=30)
    batch = distribution.make(6, 2)
    batch.reset(seed=0)
    batch.simulation.qpos[2, 2] = 1.5
    rng = np.random.default_rng(0)
    actions = [rng.uniform(-1, 1, (6, 8)) for _ in range(30)]
    observations, _, terminated, _, _ = batch.step(actions[0])
    assert terminated[2]
    assert not batch.finished[[0, 1, 3, 4, 5]].any()
    positions, velocities = batch.simulation.qpos[2].copy(), batch.simulation.qvel[2].copy()
    for action in actions[1:]:
        later, rewards, terminated, truncated, infos = batch.step(action)
        np.testing.assert_array_equal(later[2], observations[2])
        np.testing.assert_array_equal(batch.simulation.qpos[2], positions)
        np.testing.assert_array_equal(batch.simulation.qvel[2], velocities)
        assert rewards[2] == 0.0
        assert terminated[2]
        assert not infos["blown_up"].any()
    assert truncated.all()
    assert batch.finished.all()
    _, rewards, _, _, _ = batch.step(actions[0])
    assert not rewards.any()


def test_ant_ends_below_and_above_its_range():
    batch = make_distribution(envs.AntVelocity, "paper").make(3)
    batch.reset(seed=0)
    batch.simulation.qpos[:, 2] = 0.1, 0.55, 1.1
    assert batch.step(np.zeros((3, 8)))[2].tolist() == [True, False, True]


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("distribution", [envs.HalfCheetahVelocity, envs.AntVelocity])
@pytest.mark.parametrize(("field", "value"), [("qvel", 1e12), ("qpos", np.nan)])
def test_blown_up_lane_ends_and_others_go_on(distribution, dynamics, field, value):
    distribution = make_distribution(distribution, dynamics)
    batch, untouched = distribution.make(4, 2), distribution.make(4, 2)
    tasks = distribution.sample(4, np.random.default_rng(0))
    before, _ = batch.reset(seed=5, options={"tasks": tasks})
    untouched.reset(seed=5, options={"tasks": tasks})
    getattr(batch.simulation, field)[1, 2] = value
    actions = np.full((4, *distribution.action_space.shape), 0.5)
    observations, rewards, terminated, _, infos = batch.step(actions)
    expected = untouched.step(actions)
    assert infos["blown_up"].tolist() == [False, True, False, False]
    assert terminated[1]
    assert rewards[1] == 0.0
    np.testing.assert_array_equal(observations[1], before[1])
    others = [0, 2, 3]
    np.testing.assert_array_equal(observations[others], expected[0][others])
    np.testing.assert_array_equal(rewards[others], expected[1][others])
    assert not batch.step(actions)[4]["blown_up"].any()
    batch.reset(seed=5)
    assert not batch.step(actions)[4]["blown_up"].any()


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("distribution", [envs.HalfCheetahVelocity, envs.AntVelocity])
def test_seeds_alone_decide_the_initial_state(distribution, dynamics):
    distribution = make_distribution(distribution, dynamics)
    many, few = distribution.make(10, 2), distribution.make(3, 1)
    seeds = [5, 17, 2**62]
    first, _ = few.reset(seed=seeds)
    wide, _ = many.reset(seed=[1, 2, 3, *seeds, 4, 6, 7, 8])
    np.testing.assert_array_equal(first, wide[3:6])
    again, _ = few.reset(seed=seeds)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(few.reset()[0], few.reset()[0])


@pytest.mark.parametrize(("distribution", "dynamics"), CASES)
def test_episodes_do_not_depend_on_the_other_lanes(distribution, dynamics):
    distribution = make_distribution(distribution, dynamics)
    rng = np.random.default_rng(0)
    tasks, actions = (
        distribution.sample(23, rng),
        rng.uniform(-1, 1, (10, 23, *distribution.action_space.shape)),
    )
    whole = distribution.make(23, 2)
    whole.reset(seed=0, options={"tasks": tasks})
    expected = [whole.step(action)[:3] for action in actions]
    start = 0
    for count in (1, 2, 3, 4, 5, 8):
        lanes = slice(start, start + count)
        part = distribution.make(count)
        part.reset(seed=start, options={"tasks": {name: values[lanes] for name, values in tasks.items()}})
        for action, results in zip(actions, expected, strict=True):
            for mine, theirs in zip(part.step(action[lanes]), results, strict=False):
                np.testing.assert_array_equal(mine, theirs[lanes])
        start += count


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("distribution", [envs.HalfCheetahDirection, envs.AntDirection])
def test_reset_noise(distribution, dynamics):
    body = make_distribution(distribution, dynamics).body
    rng = np.random.default_rng(0)
    qpos, qvel = map(np.array, zip(*(body.initial_state(rng) for _ in range(4000)), strict=True))
    start = body.model.qpos0
    if distribution is envs.AntDirection and dynamics == "paper":
        start = np.array([0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1.0])
    noise, spread = qpos - start, 0.01 if dynamics == "paper" else 0.2 / np.sqrt(12)
    np.testing.assert_allclose(noise.mean(0), 0.0, atol=5 * spread / np.sqrt(4000))
    np.testing.assert_allclose(noise.std(0), spread, rtol=0.06)
    np.testing.assert_allclose(qvel.mean(0), 0.0, atol=0.5 / np.sqrt(4000))
    np.testing.assert_allclose(qvel.std(0), 0.1, rtol=0.06)
    if dynamics == "gymnasium":
        assert np.abs(noise).max() <= 0.1


def test_unknown_dynamics():
    with pytest.raises(ValueError, match=r"^dynamics = 'papre'; allowed: 'paper', 'gymnasium', 'peers'$"):
        envs.AntGoal(dynamics="papre")
    with pytest.raises(ValueError, match=r"^dynamics = 'peers'; allowed: 'paper', 'gymnasium'$"):
        envs.AntVelocity(dynamics="peers")


@pytest.mark.parametrize(
    ("distribution", "tasks", "message"),
    [
        (envs.HalfCheetahDirection, {"direction": np.array([2.0])}, "'direction' of task 0 is 2.0"),
        (envs.HalfCheetahDirection, {"direction": np.array([1.0, 0.5])}, "'direction' of task 1 is 0.5"),
        (envs.HalfCheetahVelocity, {"velocity": np.array([1.0, 2.5])}, "'velocity' of task 1 is 2.5"),
        (envs.AntVelocity, {"velocity": np.array([[1.0]])}, r"shape \(1, 1\)"),
        (envs.AntGoal, {"goal": np.array([[0.0, np.nan]])}, "'goal' of task 0"),
        (envs.AntGoal, {"direction": np.ones(1)}, "allowed: exactly"),
    ],
)
def test_bad_tasks(distribution, tasks, message):
    with pytest.raises(ValueError, match=message):
        distribution().make(2).reset(options={"tasks": tasks})


def test_samples_fit_their_space():
    for distribution, dynamics in CASES:
        instance = distribution(dynamics)
        tasks = instance.sample(200, np.random.default_rng(0))
        assert envs.check_tasks(tasks, instance.task_space) == 200
    assert set(envs.AntDirection().sample(50, np.random.default_rng(0))["direction"]) == {-1.0, 1.0}


def test_more_threads_than_cores_warns():
    cores = os.cpu_count() or 1
    with pytest.warns(UserWarning, match=rf"threads = {cores + 1}, but this machine has {cores} cores"):
        envs.HalfCheetahDirection().make(2, cores + 1)
    with pytest.raises(ValueError, match="threads = 0; allowed: at least 1"):
        envs.HalfCheetahDirection().make(2, 0)


def test_no_renderer_is_one_clear_line():
    code = """
from metarl import envs
batch = envs.HalfCheetahDirection().make(1)
batch.reset(seed=0)
for attempt in range(2):  # a second one must not abort the process
    try:
        batch.render_lane(0)
    except RuntimeError as error:
        print(error)
"""
    surroundings = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")}
    surroundings["PYTHONPATH"] = os.pathsep.join(sys.path)
    result = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=True)
    first, second = result.stdout.splitlines()
    assert first.startswith("no renderer (")
    assert second == first
    if hasattr(mujoco, "batch"):  # older renderers complain when they are deleted half-made
        assert "Traceback" not in result.stderr


def test_picture_where_a_renderer_exists():
    code = """
import numpy as np
from metarl import envs
batch = envs.AntDirection().make(2)
batch.reset(seed=0)
picture = batch.render_lane(1)
assert picture.shape == (360, 480, 3) and picture.dtype == np.uint8 and picture.std() > 5
state = batch.simulation.state.copy()
batch.render_lane(0)
assert np.array_equal(state, batch.simulation.state)
batch.close()
"""
    surroundings = {**os.environ, "MUJOCO_GL": "osmesa", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=False)
    if "no renderer" in result.stderr or "OSMesa" in result.stderr or "osmesa" in result.stderr:
        pytest.skip("OSMesa is not installed")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("distribution", "dynamics", "dt", "total", "first", "fourth"),
    [
        (envs.HalfCheetahDirection, "paper", 0.01, -1.31659, -0.0586282, -0.164071),
        (envs.HalfCheetahDirection, "gymnasium", 0.05, -2.33012, -0.0934703, -0.162979),
        (envs.AntDirection, "paper", 0.02, 0.302170, -0.00969967, 0.998310),
        (envs.AntDirection, "gymnasium", 0.05, 9.75229, 0.379898, -0.00320864),
    ],
)
def test_bodies_move_as_they_did(distribution, dynamics, dt, total, first, fourth):
    """Figures of MuJoCo 4.0: a version whose physics differ makes other results."""
    if distribution is envs.AntDirection and mujoco.__version__ < "4":
        pytest.skip(f"MuJoCo {mujoco.__version__} moves the ant otherwise than 4.0, for which the figures are")
    batch = distribution(dynamics=dynamics).make(1)
    batch.reset(seed=0, options={"tasks": {"direction": np.array([1.0])}})
    actions = np.linspace(-0.5, 0.5, batch.single_action_space.shape[0])[None] * batch.single_action_space.high
    steps = [batch.step(actions) for _ in range(10)]
    found = [sum(step[1][0] for step in steps), steps[-1][0][0, 0], steps[-1][0][0, 3]]
    np.testing.assert_allclose(found, [total, first, fourth], rtol=1e-4)
    assert batch.body.dt == pytest.approx(dt)
    assert batch.distribution.horizon == 200
