"""Half-cheetah: a planar body that runs in a direction or at a velocity (Finn et al. 2017, section 5.3.2).

`paper` is the body as the authors' code had it, in rllab. Its half_cheetah.xml and gymnasium's describe the
same physics, parameter for parameter; what differs is frame skip, reset noise, observation and reward.
"""

from typing import ClassVar

import mujoco
import numpy as np

from envs.locomotion import Direction, Velocity
from envs.mujoco_batch import TORSO, Body, State, compile_spec, gymnasium_spec


class PaperHalfCheetah(Body):
    """dt 0.01 s. vx is the velocity of the centre of mass of the whole body, and so is the position.

    Observation (20): qpos without x (8), qvel (9), centre of mass (3). Shared reward: -0.05 |a|^2.
    Reset noise: N(0, 0.01^2) on positions, N(0, 0.1^2) on velocities.
    """

    frame_skip = 1
    fields = ("subtree_com", "subtree_linvel")
    stage = mujoco.mjtStage.mjSTAGE_VEL
    observation_size = 20

    def __init__(self) -> None:
        spec = gymnasium_spec("half_cheetah.xml")
        # MuJoCo computes subtree_linvel only for a sensor that needs it
        spec.add_sensor(
            type=mujoco.mjtSensor.mjSENS_SUBTREELINVEL, objtype=mujoco.mjtObj.mjOBJ_BODY, objname="torso"
        )
        self.model = compile_spec(spec)

    def initial_state(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        qpos = self.model.qpos0 + 0.01 * rng.standard_normal(self.model.nq)
        return qpos, 0.1 * rng.standard_normal(self.model.nv)

    def observe(self, state: State) -> np.ndarray:
        return np.concatenate([state["qpos"][:, 1:], state["qvel"], state["subtree_com"][:, TORSO]], axis=1)

    def position(self, state: State) -> np.ndarray:
        return state["subtree_com"][:, TORSO, :2]

    def x_velocity(self, previous: np.ndarray, state: State) -> np.ndarray:
        return state["subtree_linvel"][:, TORSO, 0].copy()

    def shared_reward(self, state: State, actions: np.ndarray) -> np.ndarray:
        return -0.05 * np.square(actions).sum(axis=1)


class GymnasiumHalfCheetah(Body):
    """HalfCheetah-v5: dt 0.05 s; vx is the finite difference of the torso's position.

    Observation (17): qpos without x (8), qvel (9). Shared reward: -0.1 |a|^2.
    Reset noise: U[-0.1, 0.1] on positions, N(0, 0.1^2) on velocities.
    """

    frame_skip = 5
    observation_size = 17

    def __init__(self) -> None:
        self.model = compile_spec(gymnasium_spec("half_cheetah.xml"))

    def initial_state(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        qpos = self.model.qpos0 + rng.uniform(-0.1, 0.1, self.model.nq)
        return qpos, 0.1 * rng.standard_normal(self.model.nv)

    def observe(self, state: State) -> np.ndarray:
        return np.concatenate([state["qpos"][:, 1:], state["qvel"]], axis=1)

    def position(self, state: State) -> np.ndarray:
        # y of a planar body is 0; no task asks for it
        return state["qpos"][:, :1] * (1.0, 0.0)

    def shared_reward(self, state: State, actions: np.ndarray) -> np.ndarray:
        return -0.1 * np.square(actions).sum(axis=1)


class HalfCheetahDirection(Direction):
    """Half-cheetah running forwards or backwards."""

    name = "half_cheetah_direction"
    bodies: ClassVar = {"paper": PaperHalfCheetah, "gymnasium": GymnasiumHalfCheetah}


class HalfCheetahVelocity(Velocity):
    """Half-cheetah running at a velocity in [0, 2] m/s."""

    name = "half_cheetah_velocity"
    bodies: ClassVar = HalfCheetahDirection.bodies
    fastest = 2.0
    bonus: ClassVar = {"paper": 0.0, "gymnasium": 0.0}
