"""Slow, obvious oracles: one lane at a time, with nothing but MuJoCo's own functions."""

import mujoco
import numpy as np

from metarl import envs
from metarl.envs.half_cheetah import PaperHalfCheetah

MUJOCO_TASKS = (
    envs.HalfCheetahDirection,
    envs.HalfCheetahVelocity,
    envs.AntVelocity,
    envs.AntDirection,
    envs.AntGoal,
)
DYNAMICS = ("paper", "gymnasium")
CASES = [(distribution, dynamics) for distribution in MUJOCO_TASKS for dynamics in distribution.bodies]


class Lane:
    """One lane stepped by `mj_step`, which tells observation, reward and termination by their definitions."""

    def __init__(self, distribution, qpos, qvel, task):
        self.distribution = distribution
        self.paper = distribution.dynamics == "paper"
        self.peers = distribution.dynamics == "peers"
        self.ant = distribution.name.startswith("ant")
        self.never_done = self.peers and "goal" in task
        self.task = task
        self.model = distribution.body.model
        self.data = mujoco.MjData(self.model)
        self.data.qpos[:] = qpos
        self.data.qvel[:] = qvel
        mujoco.mj_forward(self.model, self.data)
        self.now, self.copy = self.data, mujoco.MjData(self.model)
        if self.paper:
            mujoco.mj_rnePostConstraint(self.model, self.now)
            mujoco.mj_subtreeVel(self.model, self.now)
        else:
            self.now.cfrc_ext[:] = 0.0

    def step(self, action):
        before = self.position()[0]
        self.data.ctrl[:] = action
        for _ in range(1 if self.paper else 5):
            mujoco.mj_step(self.model, self.data)
        self.now = self.data
        if self.paper:
            # the ant goes on from this forward pass, as in rllab; for the cheetah it only serves to look
            self.now = self.data if self.ant else self.copy
            self.now.qpos[:], self.now.qvel[:] = self.data.qpos, self.data.qvel
            mujoco.mj_forward(self.model, self.now)
            mujoco.mj_subtreeVel(self.model, self.now)
        mujoco.mj_rnePostConstraint(self.model, self.now)
        vx = self.now.subtree_linvel[1, 0] if self.paper else (self.position()[0] - before) / 0.05
        return self.observation(), self.task_reward(vx) + self.shared_reward(action), self.terminated()

    def position(self):
        if self.paper:
            return self.now.subtree_com[1, :2]
        return self.now.xpos[1, :2].copy() if self.ant else np.array([self.now.qpos[0], 0.0])

    def observation(self):
        qpos, qvel, forces = self.now.qpos, self.now.qvel, np.clip(self.now.cfrc_ext, -1, 1)
        com, rotation = self.now.subtree_com[1], self.now.xmat[1]
        if self.ant and self.peers:
            parts = (qpos, qvel, forces[1:]) if self.never_done else (qpos[2:], qvel)
        elif self.ant:
            parts = (qpos, qvel, forces, rotation, com) if self.paper else (qpos[2:], qvel, forces[1:])
        else:
            parts = (qpos[1:], qvel, com) if self.paper else (qpos[1:], qvel)
        return np.concatenate([part.ravel() for part in parts])

    def task_reward(self, vx):
        if "direction" in self.task:
            return self.task["direction"] * vx
        if "velocity" in self.task:
            return (1.0 if self.ant and self.paper else 0.0) - abs(vx - self.task["velocity"])
        return (4.0 if self.paper else 0.0) - np.abs(self.position() - self.task["goal"]).sum()

    def shared_reward(self, action):
        control = np.sum(action**2)
        if not self.ant:
            return -(0.05 if self.paper or self.peers else 0.1) * control
        contact = 0.0005 * np.sum(np.clip(self.now.cfrc_ext, -1, 1) ** 2)
        if self.paper:
            return 0.05 - 0.005 * control - contact
        if self.peers:
            return -0.1 * control - contact if self.never_done else 1.0 - 0.5 * control - contact
        return (0.0 if self.terminated() else 1.0) - 0.5 * control - contact

    def terminated(self):
        state = np.concatenate([self.now.qpos, self.now.qvel])
        return self.ant and not self.never_done and not (np.isfinite(state).all() and 0.2 <= self.now.qpos[2] <= 1.0)


def assert_batches_equal_lanes(distribution, threads, steps, num_envs=64, seed=7):
    """Play one batch per number of threads with random actions, and compare them with a `Lane` for each lane.

    States, observations and terminations must be equal to the last bit, except the centre of mass of the
    paper's half-cheetah, which batch and MuJoCo sum in another order: to 1e-13. So do rewards: to 1e-12.
    """
    rng = np.random.default_rng(seed)
    tasks = distribution.sample(num_envs, rng)
    batches = [distribution.make(num_envs, count) for count in threads]
    starts = [batch.reset(seed=seed, options={"tasks": tasks})[0] for batch in batches]
    physics = batches[0].simulation
    tolerance = 1e-13 if isinstance(distribution.body, PaperHalfCheetah) else 0
    lanes = [
        Lane(distribution, physics.qpos[i], physics.qvel[i], {name: tasks[name][i] for name in tasks})
        for i in range(num_envs)
    ]
    for observations in starts:
        np.testing.assert_allclose(observations, [lane.observation() for lane in lanes], 0, tolerance)
    for _ in range(steps):
        actions = rng.uniform(-1, 1, (num_envs, *distribution.action_space.shape))
        observations, rewards, terminated = zip(
            *(lane.step(action) for lane, action in zip(lanes, actions, strict=True)), strict=True
        )
        for batch in batches:
            results = batch.step(actions)
            batch.finished[:] = False  # an ant that fell goes on, so that the comparison does
            np.testing.assert_array_equal(batch.simulation.qpos, [lane.data.qpos for lane in lanes])
            np.testing.assert_array_equal(batch.simulation.qvel, [lane.data.qvel for lane in lanes])
            np.testing.assert_allclose(results[0], observations, rtol=0, atol=tolerance)
            np.testing.assert_allclose(results[1], rewards, rtol=1e-12, atol=1e-12)
            np.testing.assert_array_equal(results[2], terminated)
