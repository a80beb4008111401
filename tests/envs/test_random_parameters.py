"""Walker and hopper with random parameters: each lane equals `mj_step` on a model of its own."""

import copy
import time

import mujoco
import numpy as np
import pytest

from metarl import envs
from metarl.envs import lane_batch, mujoco_batch
from metarl.envs.random_parameters import BASES

BODIES = [envs.WalkerParameters, envs.HopperParameters]
ENGINES = [lane_batch.Batch] if mujoco_batch.Batch is lane_batch.Batch else [lane_batch.Batch, mujoco_batch.Batch]


def own_model(distribution, tasks, number):
    """The model of a task, its parameters multiplied one by one."""
    model = copy.copy(distribution.body.model)
    for body in range(1, model.nbody):
        model.body_mass[body] *= tasks["mass"][number, body - 1]
        model.body_inertia[body] *= tasks["inertia"][number, body - 1]
    for geom in range(model.ngeom):
        model.geom_friction[geom] *= tasks["friction"][number, geom]
    hinges = [name for name in range(model.njnt) if model.dof_damping[model.jnt_dofadr[name]] > 0]
    for number_of_hinge, joint in enumerate(hinges):
        model.dof_damping[model.jnt_dofadr[joint]] *= tasks["damping"][number, number_of_hinge]
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


class Lane:
    """One lane with a model of its own, and peers' observation, reward and end by their definitions."""

    def __init__(self, distribution, model, qpos, qvel):
        self.walks = distribution.name == "walker_parameters"
        self.model, self.data = model, mujoco.MjData(model)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_forward(model, self.data)

    def step(self, action):
        before = self.data.qpos[0]
        self.data.ctrl[:] = np.clip(action, -1, 1)
        for _ in range(5 if self.walks else 4):
            mujoco.mj_step(self.model, self.data)
        dt = 0.01 if self.walks else 0.008
        reward = (self.data.qpos[0] - before) / dt + 1 - 0.001 * np.sum(self.data.ctrl**2)
        _, height, angle = self.data.qpos[:3]
        state = np.concatenate([self.data.qpos, self.data.qvel])
        if self.walks:
            healthy = 0.8 < height < 2.0 and -1 < angle < 1
        else:
            healthy = bool((np.abs(state[2:]) < 100).all()) and height > 0.7 and abs(angle) < 0.2
        observation = [*self.data.qpos[1:], *(min(max(speed, -10), 10) for speed in self.data.qvel)]
        return observation, reward, not healthy


@pytest.mark.filterwarnings("ignore:threads = ")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", BODIES)
def test_lanes_equal_mj_step_on_their_own_models(kind, threads, engine, monkeypatch):
    monkeypatch.setattr(mujoco_batch, "Batch", engine)
    distribution, rng = kind(horizon=10_000), np.random.default_rng(3)
    batch, ended = distribution.make(12, threads), 0
    for _ in range(2):  # the second time with other tasks on the same batch
        tasks = distribution.sample(4, rng)
        batch.reset(seed=5, options={"tasks": tasks})
        physics = batch.simulation
        lanes = [
            Lane(distribution, own_model(distribution, tasks, lane // 3), physics.qpos[lane], physics.qvel[lane])
            for lane in range(12)
        ]
        for _ in range(25):
            actions = rng.uniform(-1.5, 1.5, (12, *distribution.action_space.shape))
            found = batch.step(actions)
            batch.finished[:] = False  # a body that fell goes on, so that the comparison does
            expected = [lane.step(action) for lane, action in zip(lanes, actions, strict=True)]
            np.testing.assert_array_equal(physics.qpos, [lane.data.qpos for lane in lanes])
            np.testing.assert_array_equal(found[0], [observation for observation, _, _ in expected])
            np.testing.assert_allclose(found[1], [reward for _, reward, _ in expected], rtol=1e-12, atol=1e-12)
            np.testing.assert_array_equal(found[2], [end for _, _, end in expected])
            ended += found[2].sum()
    assert 0 < ended < 500


@pytest.mark.parametrize("kind", BODIES)
def test_factors_are_powers_of_a_uniform_exponent(kind):
    distribution = kind()
    tasks = distribution.sample(2000, np.random.default_rng(0))
    for name, factors in tasks.items():
        exponents = np.log(factors) / np.log(BASES[name])
        assert np.abs(exponents).max() <= 3
        assert np.abs(np.quantile(exponents, [0.25, 0.5, 0.75]) - [-1.5, 0, 1.5]).max() < 0.15
        apart = np.corrcoef(exponents.reshape(2000, -1)[:, :2].T)[0, 1]  # each parameter is drawn by itself
        assert abs(apart) < 0.1
    assert BASES == {"mass": 1.5, "inertia": 1.5, "friction": 1.5, "damping": 1.3}


@pytest.mark.parametrize("name", ["mass", "inertia", "friction", "damping"])
@pytest.mark.parametrize("kind", BODIES)
def test_every_parameter_reaches_the_physics(kind, name):
    distribution = kind(horizon=10_000)
    tasks = {key: np.ones((2, *space.shape)) for key, space in distribution.task_space.items()}
    tasks[name][1] = 1.3
    batch = distribution.make(2)
    batch.reset(seed=[1, 1], options={"tasks": tasks})
    action = np.random.default_rng(0).uniform(-1, 1, distribution.action_space.shape)
    for _ in range(40):
        batch.step(np.stack([action, action]))
        batch.finished[:] = False
    assert not np.array_equal(batch.simulation.qpos[0], batch.simulation.qpos[1])


@pytest.mark.parametrize("kind", BODIES)
def test_a_task_of_ones_is_the_plain_body_again(kind):
    distribution = kind(horizon=10_000)
    ones = {key: np.ones((1, *space.shape)) for key, space in distribution.task_space.items()}
    batch = distribution.make(1)
    batch.reset(seed=1, options={"tasks": distribution.sample(1, np.random.default_rng(0))})
    batch.step(np.zeros((1, *distribution.action_space.shape)))
    batch.reset(seed=1, options={"tasks": ones})
    model = distribution.body.model
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = batch.simulation.qpos[0], batch.simulation.qvel[0]
    batch.step(np.full((1, *distribution.action_space.shape), 0.5))
    data.ctrl[:] = 0.5
    mujoco.mj_step(model, data, distribution.body.frame_skip)
    np.testing.assert_array_equal(batch.simulation.qpos[0], data.qpos)


def test_factors_outside_their_range_are_refused():
    distribution = envs.HopperParameters()
    tasks = distribution.sample(2, np.random.default_rng(0))
    tasks["mass"][1, 2] = 4.0
    with pytest.raises(ValueError, match="'mass' of task 1"):
        distribution.make(2).reset(options={"tasks": tasks})


@pytest.mark.slow
@pytest.mark.parametrize("kind", BODIES)
def test_steps_per_second_with_models_of_their_own(kind, capsys):
    """100 lanes on one thread with and without models of their own; medians of turns, in time of the processor."""
    distribution = kind(horizon=10_000)
    plain = kind(horizon=10_000)
    plain.change_models = lambda simulation, tasks: None
    batches = [distribution.make(100), plain.make(100)]
    tasks = {name: np.ones((1, *space.shape)) for name, space in distribution.task_space.items()}
    actions = np.random.default_rng(0).uniform(-1, 1, (200, 100, *distribution.action_space.shape))

    def seconds(batch):
        start = time.process_time()
        batch.reset(seed=0, options={"tasks": tasks})
        for action in actions:
            batch.finished[:] = False
            batch.step(action)
        return time.process_time() - start

    turns = np.array([[seconds(batch) for batch in batches] for _ in range(5)])
    ratio = np.median(turns[:, 1]) / np.median(turns[:, 0])
    with capsys.disabled():
        print(f"\n{distribution.name}: {ratio:.2f} of the steps per second of lanes that share a model")
    assert ratio > 0.8
