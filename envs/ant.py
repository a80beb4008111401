"""Ant: four legs that run in a direction, at a velocity, or to a place (Finn et al. 2017, section 5.3.2).

`paper` is the body as the authors' code had it, in rllab. Its ant.xml differs from gymnasium's in the time
step (0.02 s), in the contact parameter solimp, which gymnasium's file leaves at MuJoCo's default, and in
giving torques in N m (gear 1, control range +-150) where gymnasium's has gear 150 and range +-1; here the
action is always in [-1, 1]. rllab starts episodes at the `init_qpos` that both files hold (torso at 0.55 m,
ankles bent by 1 rad) and gymnasium's does not use.

`peers` is gymnasium's body with the rewards, observations and ends of ProMP, PEARL and VariBAD, which differ
between direction and goal; they have no velocities for it.
"""

from typing import ClassVar

import mujoco
import numpy as np

from .locomotion import Direction, Goal, Velocity
from .mujoco_batch import TORSO, Body, State, compile_spec, gymnasium_spec


class Ant(Body):
    """What all dynamics share: an ant falls when its torso leaves [0.2, 1] m."""

    def unhealthy(self, state: State) -> np.ndarray:
        height = state["qpos"][:, 2]
        finite = np.isfinite(state["qpos"]).all(axis=1) & np.isfinite(state["qvel"]).all(axis=1)
        return ~(finite & (height >= 0.2) & (height <= 1.0))


class PaperAnt(Ant):
    """dt 0.02 s. vx is the velocity of the centre of mass of the whole body, and so is the position.

    Observation (125): qpos (15), qvel (14), cfrc_ext of 14 bodies clipped to [-1, 1] (84), rotation matrix of
    the torso (9), centre of mass (3). Shared reward: 0.05 - 0.005 |a|^2 - 0.0005 |clipped cfrc_ext|^2. Reset
    noise: N(0, 0.01^2) on positions, N(0, 0.1^2) on velocities.

    rllab ran `mj_forward` after each step, with the step's controls; so here do stages up to the
    accelerations, and cfrc_ext is that of the new state. This assumes that the MuJoCo 1.31 of that time
    filled it in every forward pass.
    """

    frame_skip = 1
    fields = ("subtree_com", "subtree_linvel", "xmat", "cfrc_ext")
    stage = mujoco.mjtStage.mjSTAGE_ACC
    observation_size = 125

    def __init__(self) -> None:
        spec = gymnasium_spec("ant.xml")
        spec.option.timestep = 0.02
        for geom in spec.geoms:
            geom.solimp[:3] = 0.8, 0.8, 0.01
        # MuJoCo computes subtree_linvel and cfrc_ext only for sensors that need them
        for sensor in (mujoco.mjtSensor.mjSENS_SUBTREELINVEL, mujoco.mjtSensor.mjSENS_FRAMELINACC):
            spec.add_sensor(type=sensor, objtype=mujoco.mjtObj.mjOBJ_BODY, objname="torso")
        self.model = compile_spec(spec)

    def initial_state(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        qpos = self.model.numeric("init_qpos").data + 0.01 * rng.standard_normal(self.model.nq)
        return qpos, 0.1 * rng.standard_normal(self.model.nv)

    def observe(self, state: State) -> np.ndarray:
        forces = np.clip(state["cfrc_ext"], -1.0, 1.0).reshape(-1, 84)
        torso = state["xmat"][:, TORSO], state["subtree_com"][:, TORSO]
        return np.concatenate([state["qpos"], state["qvel"], forces, *torso], axis=1)

    def position(self, state: State) -> np.ndarray:
        return state["subtree_com"][:, TORSO, :2]

    def velocity(self, previous: np.ndarray, state: State) -> np.ndarray:
        return state["subtree_linvel"][:, TORSO, :2]

    def shared_reward(self, state: State, actions: np.ndarray) -> np.ndarray:
        forces = np.clip(state["cfrc_ext"], -1.0, 1.0)
        return 0.05 - 0.005 * np.square(actions).sum(axis=1) - 0.0005 * np.square(forces).sum(axis=(1, 2))


class GymnasiumAnt(Ant):
    """Ant-v5: dt 0.05 s; vx is the finite difference of the torso's `xpos`.

    Observation (105): qpos without x and y (13), qvel (14), cfrc_ext of the 13 bodies other than the world,
    clipped to [-1, 1] (78). Shared reward: survival - control_cost |a|^2 - 0.0005 |clipped cfrc_ext|^2, where
    control_cost is 0.5, and survival is 1 while healthy. Reset noise: U[-0.1, 0.1] on positions, N(0, 0.1^2) on
    velocities.

    As in gymnasium, `xpos` and `cfrc_ext` are those of the last stage of the integrator, just before the new
    state.
    """

    frame_skip = 5
    fields = ("xpos",)
    leftover_forces = True
    observation_size = 105
    control_cost = 0.5

    def __init__(self) -> None:
        self.model = compile_spec(gymnasium_spec("ant.xml"))

    def initial_state(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        qpos = self.model.qpos0 + rng.uniform(-0.1, 0.1, self.model.nq)
        return qpos, 0.1 * rng.standard_normal(self.model.nv)

    def observe(self, state: State) -> np.ndarray:
        forces = np.clip(state["cfrc_ext"][:, 1:], -1.0, 1.0).reshape(-1, 78)
        return np.concatenate([state["qpos"][:, 2:], state["qvel"], forces], axis=1)

    def position(self, state: State) -> np.ndarray:
        return state["xpos"][:, TORSO, :2]

    def shared_reward(self, state: State, actions: np.ndarray) -> np.ndarray:
        forces = np.clip(state["cfrc_ext"], -1.0, 1.0)
        costs = self.control_cost * np.square(actions).sum(axis=1) + 0.0005 * np.square(forces).sum(axis=(1, 2))
        return self.survival(state) - costs

    def survival(self, state: State) -> np.ndarray:
        """Return the reward (N,) for not having fallen."""
        return np.where(self.unhealthy(state), 0.0, 1.0)


class PeersAnt(GymnasiumAnt):
    """The ant of PEARL's and VariBAD's directions.

    It differs from gymnasium's in its observation (27), which has no contact forces, and in that the step in which it
    falls has the survival reward of 1 too. ProMP's sees contact forces, and falls when its torso leaves [0, 1] m.
    """

    observation_size = 27

    def observe(self, state: State) -> np.ndarray:
        return np.concatenate([state["qpos"][:, 2:], state["qvel"]], axis=1)

    def survival(self, state: State) -> np.ndarray:
        return np.ones(len(state["qpos"]))


class PeersGoalAnt(GymnasiumAnt):
    """The ant of ProMP's, PEARL's and VariBAD's goals: no survival reward, and episodes that no fall ends.

    Observation (107): qpos (15), in which x and y are visible, qvel (14), clipped cfrc_ext (78); peers append six zeros
    for the world. control_cost is 0.1.
    """

    observation_size = 107
    control_cost = 0.1

    def observe(self, state: State) -> np.ndarray:
        return np.concatenate([state["qpos"][:, :2], super().observe(state)], axis=1)

    def survival(self, state: State) -> np.ndarray:
        return np.zeros(len(state["qpos"]))

    def unhealthy(self, state: State) -> np.ndarray:
        return np.zeros(len(state["qpos"]), bool)


class AntVelocity(Velocity):
    """Ant running at a velocity in [0, 3] m/s."""

    name = "ant_velocity"
    bodies: ClassVar = {"paper": PaperAnt, "gymnasium": GymnasiumAnt}
    fastest: ClassVar = {"paper": 3.0, "gymnasium": 3.0}
    bonus: ClassVar = {"paper": 1.0, "gymnasium": 0.0}


class AntDirection(Direction):
    """Ant running forwards or backwards."""

    name = "ant_direction"
    bodies: ClassVar = {**AntVelocity.bodies, "peers": PeersAnt}


class AntGoal(Goal):
    """Ant running to a place in [-3, 3]^2 m, with `peers` dynamics on the disc of 3 m."""

    name = "ant_goal"
    bodies: ClassVar = {**AntVelocity.bodies, "peers": PeersGoalAnt}
    bonus: ClassVar = {"paper": 4.0, "gymnasium": 0.0, "peers": 0.0}
