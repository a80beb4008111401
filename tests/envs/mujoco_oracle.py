"""Slow, obvious oracles: one lane at a time, with nothing but MuJoCo's own functions."""

import mujoco
import numpy as np

import envs

MUJOCO_TASKS = (
    envs.HalfCheetahDirection,
    envs.HalfCheetahVelocity,
    envs.AntVelocity,
    envs.AntDirection,
    envs.AntGoal,
)
DYNAMICS = ("paper", "gymnasium")


class Lane:
    """One lane stepped by `mj_step`, which tells observation, reward and termination by their definitions."""

    def __init__(self, distribution, qpos, qvel, task):
        self.distribution = distribution
        self.paper = distribution.dynamics == "paper"
        self.ant = distribution.name.startswith("ant")
        self.task = task
        self.model = distribution.body.model
        self.data = mujoco.MjData(self.model)
        self.data.qpos[:] = qpos
        self.data.qvel[:] = qvel
        mujoco.mj_forward(self.model, self.data)
        self.now = self.data
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
            # rllab went on from here with the ant; the cheetah's forces are not needed, so a copy will do
            self.now = self.data if self.ant else mujoco.MjData(self.model)
            if not self.ant:
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
        if self.ant:
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
            return -(0.05 if self.paper else 0.1) * control
        contact = 0.0005 * np.sum(np.clip(self.now.cfrc_ext, -1, 1) ** 2)
        if self.paper:
            return 0.05 - 0.005 * control - contact
        return (0.0 if self.terminated() else 1.0) - 0.5 * control - contact

    def terminated(self):
        state = np.concatenate([self.now.qpos, self.now.qvel])
        return self.ant and not (np.isfinite(state).all() and 0.2 <= self.now.qpos[2] <= 1.0)


def assert_equals_lanes(distribution, threads, steps, num_envs=64, lanes=None):
    """Play a batch with random actions and compare it, step by step, with the oracle of each lane.

    States must be equal to the last bit; rewards, which are sums in another order, to 1e-12.
    """
    rng = np.random.default_rng(7)
    tasks = distribution.sample(num_envs, rng)
    batch = distribution.make(num_envs, threads)
    observations, _ = batch.reset(seed=3, options={"tasks": tasks})
    lanes = range(num_envs) if lanes is None else lanes
    oracles = {
        i: Lane(
            distribution,
            batch.simulation.qpos[i].copy(),
            batch.simulation.qvel[i].copy(),
            {name: values[i] for name, values in tasks.items()},
        )
        for i in lanes
    }
    for i, oracle in oracles.items():
        np.testing.assert_array_equal(observations[i], oracle.observation())
    for _ in range(steps):
        actions = rng.uniform(-1, 1, (num_envs, distribution.action_space.shape[0]))
        observations, rewards, terminated, _, _ = batch.step(actions)
        batch.finished[:] = False  # an ant that fell goes on, so that the comparison does
        for i, oracle in oracles.items():
            observation, reward, done = oracle.step(actions[i])
            np.testing.assert_array_equal(batch.simulation.qpos[i], oracle.data.qpos)
            np.testing.assert_array_equal(batch.simulation.qvel[i], oracle.data.qvel)
            np.testing.assert_array_equal(observations[i], observation)
            assert abs(rewards[i] - reward) <= 1e-12 * max(1.0, abs(reward))
            assert terminated[i] == done
