"""Walker and hopper whose masses, inertias, frictions and dampings differ from task to task.

The tasks are those of rand_param_envs, which ProMP (Rothfuss et al. 2019), PEARL (Rakelly et al. 2019) and VariBAD
(Zintgraf et al. 2020) use. All run forwards; what a policy has to find out is its body.
"""

from typing import ClassVar

import numpy as np
from gymnasium.spaces import Box

from .mujoco_batch import Batch, Body, MujocoTasks, State, compile_spec, gymnasium_spec
from .tasks import Tasks

LIMIT = 3.0  # of the exponents
BASES = {"mass": 1.5, "inertia": 1.5, "friction": 1.5, "damping": 1.3}


class PlanarBody(Body):
    """A body that runs or hops in a plane, until it falls.

    Observation: qpos without x, qvel clipped to [-10, 10]. Shared reward: 1 - 0.001 |a|^2, also in the step in which it
    falls. vx is the finite difference of the torso's position. Reset noise: U[-0.005, 0.005] on positions and
    velocities.

    Args:
        file_name: of the model, in gymnasium.
        frame_skip: physics steps of 0.002 s per environment step.
    """

    def __init__(self, file_name: str, frame_skip: int):
        self.model = compile_spec(gymnasium_spec(file_name))
        self.frame_skip = frame_skip
        self.observation_size = self.model.nq - 1 + self.model.nv

    def initial_state(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        qpos = self.model.qpos0 + rng.uniform(-0.005, 0.005, self.model.nq)
        return qpos, rng.uniform(-0.005, 0.005, self.model.nv)

    def observe(self, state: State) -> np.ndarray:
        return np.concatenate([state["qpos"][:, 1:], np.clip(state["qvel"], -10.0, 10.0)], axis=1)

    def position(self, state: State) -> np.ndarray:
        return state["qpos"][:, :1] * (1.0, 0.0)

    def shared_reward(self, state: State, actions: np.ndarray) -> np.ndarray:
        return 1.0 - 0.001 * np.square(actions).sum(axis=1)


class Walker(PlanarBody):
    """Two legs, dt 0.01 s; it falls when its torso leaves (0.8, 2) m or is inclined by 1 rad."""

    def __init__(self) -> None:
        super().__init__("walker2d.xml", frame_skip=5)  # peers' and gymnasium's older model; Walker2d-v5 has another

    def unhealthy(self, state: State) -> np.ndarray:
        height, angle = state["qpos"][:, 1], state["qpos"][:, 2]
        return ~((height > 0.8) & (height < 2.0) & (np.abs(angle) < 1.0))


class Hopper(PlanarBody):
    """One leg, dt 0.008 s; it falls when its torso is below 0.7 m, inclined by 0.2 rad, or its state leaves +-100."""

    def __init__(self) -> None:
        super().__init__("hopper.xml", frame_skip=4)

    def unhealthy(self, state: State) -> np.ndarray:
        height, angle = state["qpos"][:, 1], state["qpos"][:, 2]
        others = np.concatenate([state["qpos"][:, 2:], state["qvel"]], axis=1)
        return ~((np.abs(others) < 100.0).all(axis=1) & (height > 0.7) & (np.abs(angle) < 0.2))


class RandomParameters(MujocoTasks):
    """Run forwards with a body of random parameters; the task's reward is vx.

    A task holds a factor for each parameter of the model, b^u with u ~ U[-3, 3]: the mass (nbody - 1,) and the three
    inertias (nbody - 1, 3) of each body but the world, the three frictions of each geom, the floor included
    (ngeom, 3), with b = 1.5; and the damping of each hinge that has some (hinges,), with b = 1.3.

    Deviation: constants that MuJoCo derives from these (inverse inertias at rest, on which contacts depend) follow
    them here. Peers' code leaves them at those of the original body.
    """

    def __init__(self, dynamics: str = "peers", horizon: int = 200):
        super().__init__(dynamics, horizon)
        model = self.body.model
        self.damped = np.flatnonzero(model.dof_damping)
        shapes = {
            "mass": (model.nbody - 1,),
            "inertia": (model.nbody - 1, 3),
            "friction": (model.ngeom, 3),
            "damping": (len(self.damped),),
        }
        self.task_space = {
            name: Box(BASES[name] ** -LIMIT, BASES[name] ** LIMIT, shape, np.float64) for name, shape in shapes.items()
        }

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw the factors of `count` bodies, (count, ...)."""
        return {
            name: BASES[name] ** rng.uniform(-LIMIT, LIMIT, (count, *space.shape))
            for name, space in self.task_space.items()
        }

    def task_reward(self, position: np.ndarray, velocity: np.ndarray, tasks: Tasks) -> np.ndarray:
        """Return vx, (N,)."""
        return velocity[:, 0]

    def change_models(self, simulation: Batch, tasks: Tasks) -> None:
        model = self.body.model
        simulation.expand("body_mass")[:, 1:] = model.body_mass[1:] * tasks["mass"]
        simulation.expand("body_inertia")[:, 1:] = model.body_inertia[1:] * tasks["inertia"]
        simulation.expand("geom_friction")[:] = model.geom_friction * tasks["friction"]
        simulation.expand("dof_damping")[:, self.damped] = model.dof_damping[self.damped] * tasks["damping"]
        simulation.set_const()


class WalkerParameters(RandomParameters):
    """Walker with random parameters."""

    name = "walker_parameters"
    bodies: ClassVar = {"peers": Walker}


class HopperParameters(RandomParameters):
    """Hopper with random parameters."""

    name = "hopper_parameters"
    bodies: ClassVar = {"peers": Hopper}
