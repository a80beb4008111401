"""Humanoid that runs in a direction of the plane, as PEARL (Rakelly et al. 2019) and VariBAD simulate it."""

from typing import ClassVar

import numpy as np
from gymnasium.spaces import Box

from .mujoco_batch import Body, MujocoTasks, State, compile_spec, gymnasium_spec
from .tasks import Tasks


class Humanoid(Body):
    """Humanoid-v5: dt 0.015 s; the place is that of the centre of mass.

    Observation (348): qpos without x and y (22), qvel (23), and of the 13 bodies other than the world cinert (130),
    cvel (78), then the actuators' forces (17) and cfrc_ext of these bodies (78); peers append zeros for the world and
    the root. Shared reward: 5 - 0.1 |a|^2 - min(10, 5e-7 |cfrc_ext|^2), also in the step in which it falls, where
    gymnasium's has no 5. It falls when its torso leaves (1, 2) m. Reset noise: U[-0.01, 0.01] on positions and
    velocities.

    As in gymnasium, all but qpos and qvel is that of the last stage of the integrator, just before the new state.
    """

    frame_skip = 5
    fields = ("xipos", "cinert", "cvel", "qfrc_actuator")
    leftover_forces = True
    observation_size = 348

    def __init__(self) -> None:
        self.model = compile_spec(gymnasium_spec("humanoid.xml"))
        self.shares = self.model.body_mass / self.model.body_mass.sum()

    def initial_state(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        qpos = self.model.qpos0 + rng.uniform(-0.01, 0.01, self.model.nq)
        return qpos, rng.uniform(-0.01, 0.01, self.model.nv)

    def observe(self, state: State) -> np.ndarray:
        of_bodies = [state[name][:, 1:].reshape(len(state["qpos"]), -1) for name in ("cinert", "cvel", "cfrc_ext")]
        inertias, velocities, forces = of_bodies
        return np.concatenate(
            [state["qpos"][:, 2:], state["qvel"], inertias, velocities, state["qfrc_actuator"][:, 6:], forces], axis=1
        )

    def position(self, state: State) -> np.ndarray:
        return (self.shares[:, None] * state["xipos"][:, :, :2]).sum(axis=1)

    def shared_reward(self, state: State, actions: np.ndarray) -> np.ndarray:
        contact = 5e-7 * np.square(state["cfrc_ext"]).sum(axis=(1, 2))
        return 5.0 - 0.1 * np.square(actions).sum(axis=1) - np.minimum(contact, 10.0)

    def unhealthy(self, state: State) -> np.ndarray:
        return ~((state["qpos"][:, 2] > 1.0) & (state["qpos"][:, 2] < 2.0))


class HumanoidDirection(MujocoTasks):
    """Run in the direction of an angle a ~ U[0, 2 pi]; the task's reward is 1.25 (vx cos a + vy sin a)."""

    name = "humanoid_direction"
    bodies: ClassVar = {"peers": Humanoid}
    task_space = {"angle": Box(0.0, 2 * np.pi, (), np.float64)}  # noqa: RUF012

    def __init__(self, dynamics: str = "peers", horizon: int = 200):
        super().__init__(dynamics, horizon)

    def sample(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw angles (count,) in radians, spread evenly, the first one at random; see `Direction` for why."""
        turn = 2 * np.pi
        return {"angle": (rng.uniform(0.0, turn) + turn * np.arange(count) / count) % turn}

    def sample_test(self, count: int, rng: np.random.Generator) -> Tasks:
        """Draw angles (count,) in radians, each from the whole range."""
        return {"angle": rng.uniform(0.0, 2 * np.pi, count)}

    def task_reward(self, position: np.ndarray, velocity: np.ndarray, tasks: Tasks) -> np.ndarray:
        """Return 1.25 (vx cos a + vy sin a), (N,)."""
        return 1.25 * (velocity[:, 0] * np.cos(tasks["angle"]) + velocity[:, 1] * np.sin(tasks["angle"]))
