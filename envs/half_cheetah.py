"""Half-cheetah: a planar body that runs in a direction or at a velocity (Finn et al. 2017, section 5.3.2).

`paper` is the body as the authors' code had it, in rllab. Its half_cheetah.xml and gymnasium's describe the
same physics, parameter for parameter; what differs is frame skip, reset noise, observation and reward.
`peers` is gymnasium's body with the control cost and the velocities of ProMP, PEARL and VariBAD.
"""

from typing import ClassVar

import mujoco
import numpy as np

from .locomotion import Direction, Velocity
from .mujoco_batch import TORSO, Body, State, compile_spec, gymnasium_spec


class PaperHalfCheetah(Body):
    """dt 0.01 s. vx is the velocity of the centre of mass of the whole body, and so is the position.

    Observation (20): qpos without x (8), qvel (9), centre of mass (3). Shared reward: -0.05 |a|^2.
    Reset noise: N(0, 0.01^2) on positions, N(0, 0.1^2) on velocities.

    The centre of mass and its velocity are written out below. They equal MuJoCo's to 1e-15; to have MuJoCo
    compute them at the new state would cost a quarter of the speed.
    """

    frame_skip = 1
    observation_size = 20

    def __init__(self) -> None:
        self.model = compile_spec(gymnasium_spec("half_cheetah.xml"))
        self.arms = _mass_arms(self.model)

    def initial_state(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        qpos = self.model.qpos0 + 0.01 * rng.standard_normal(self.model.nq)
        return qpos, 0.1 * rng.standard_normal(self.model.nv)

    def derive(self, state: State) -> State:
        """Return the centre of mass `com` (N, 3) and its forward velocity `com_vx` (N,).

        With theta_j the angle of link j about the y axis and (a_j, b_j) its arm,

            com = root + sum_j (a_j cos theta_j + b_j sin theta_j, 0, b_j cos theta_j - a_j sin theta_j).
        """
        model, qpos, qvel = self.model, state["qpos"], state["qvel"]
        angles, rates = np.empty((2, len(self.arms), len(qpos)))
        for link, body in enumerate(range(TORSO, model.nbody)):
            hinge = model.body_dofadr[body] + model.body_dofnum[body] - 1
            angles[link], rates[link] = qpos[:, hinge], qvel[:, hinge]
            if body > TORSO:
                parent = model.body_parentid[body] - TORSO
                angles[link] += angles[parent]
                rates[link] += rates[parent]
        cos, sin, (a, b) = np.cos(angles), np.sin(angles), self.arms.T[..., None]
        height = b * cos - a * sin
        com = np.zeros((len(qpos), 3))
        # sums over rows, for the rounding of matrix products depends on the number of lanes
        com[:, 0] = qpos[:, 0] + (a * cos + b * sin).sum(axis=0)
        com[:, 2] = model.body_pos[TORSO, 2] + qpos[:, 1] + height.sum(axis=0)
        return {"com": com, "com_vx": qvel[:, 0] + (rates * height).sum(axis=0)}

    def observe(self, state: State) -> np.ndarray:
        return np.concatenate([state["qpos"][:, 1:], state["qvel"], state["com"]], axis=1)

    def position(self, state: State) -> np.ndarray:
        return state["com"][:, :2]

    def velocity(self, previous: np.ndarray, state: State) -> np.ndarray:
        return state["com_vx"][:, None] * (1.0, 0.0)

    def shared_reward(self, state: State, actions: np.ndarray) -> np.ndarray:
        return -0.05 * np.square(actions).sum(axis=1)


def _mass_arms(model: mujoco.MjModel) -> np.ndarray:
    """Return for each link its arm (x, z) in its own frame: what it carries, times mass, over the total mass.

    A link carries its own mass at its centre, and the mass of each subtree at the joint to it.
    """
    arms = model.body_mass[:, None] * model.body_ipos[:, [0, 2]]
    for body in range(TORSO + 1, model.nbody):
        arms[model.body_parentid[body]] += model.body_subtreemass[body] * model.body_pos[body, [0, 2]]
    return arms[TORSO:] / model.body_subtreemass[TORSO]


class GymnasiumHalfCheetah(Body):
    """HalfCheetah-v5: dt 0.05 s; vx is the finite difference of the torso's position.

    Observation (17): qpos without x (8), qvel (9). Shared reward: -control_cost |a|^2, and control_cost is 0.1.
    Reset noise: U[-0.1, 0.1] on positions, N(0, 0.1^2) on velocities.
    """

    frame_skip = 5
    observation_size = 17
    control_cost = 0.1

    def __init__(self) -> None:
        self.model = compile_spec(gymnasium_spec("half_cheetah.xml"))

    def initial_state(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        qpos = self.model.qpos0 + rng.uniform(-0.1, 0.1, self.model.nq)
        return qpos, 0.1 * rng.standard_normal(self.model.nv)

    def observe(self, state: State) -> np.ndarray:
        return np.concatenate([state["qpos"][:, 1:], state["qvel"]], axis=1)

    def position(self, state: State) -> np.ndarray:
        # y of a planar body is 0
        return state["qpos"][:, :1] * (1.0, 0.0)

    def shared_reward(self, state: State, actions: np.ndarray) -> np.ndarray:
        return -self.control_cost * np.square(actions).sum(axis=1)


class PeersHalfCheetah(GymnasiumHalfCheetah):
    """The half-cheetah of ProMP, PEARL and VariBAD: gymnasium's with a control cost of 0.05.

    Observations are ProMP's. PEARL and VariBAD append the torso's place (3), in which x is visible.
    """

    control_cost = 0.05


class HalfCheetahDirection(Direction):
    """Half-cheetah running forwards or backwards."""

    name = "half_cheetah_direction"
    bodies: ClassVar = {
        "paper": PaperHalfCheetah,
        "gymnasium": GymnasiumHalfCheetah,
        "peers": PeersHalfCheetah,
    }


class HalfCheetahVelocity(Velocity):
    """Half-cheetah running at a velocity in [0, 2] m/s, with `peers` dynamics in [0, 3] m/s."""

    name = "half_cheetah_velocity"
    bodies: ClassVar = HalfCheetahDirection.bodies
    fastest: ClassVar = {"paper": 2.0, "gymnasium": 2.0, "peers": 3.0}
    bonus: ClassVar = {"paper": 0.0, "gymnasium": 0.0, "peers": 0.0}
