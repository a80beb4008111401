"""N lanes of one MuJoCo model, whose parameters may differ from lane to lane, stepped together on C threads.

The physics is `mujoco.batch.Batch` (MuJoCo 3.17 and later; before that `envs.lane_batch`, which is slower). It
keeps the whole state of every lane, the constraint solver's warm start included, so a lane's trajectory is that
of `mj_step` on this lane alone, to the last bit, for any number of threads and lanes. `mujoco.rollout` cannot do
this: it neither returns the warm start nor anything but sensors, which describe the state before a step.

A body is a subclass of `Body`, a task a subclass of `MujocoTasks`: pure functions of arrays and a sampler.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box

from .tasks import TaskBatch, TaskDistribution, Tasks

try:
    from mujoco.batch import Batch
except ImportError:  # MuJoCo before 3.17
    from .lane_batch import Batch

State = Mapping[str, np.ndarray]

TORSO = 1  # in gymnasium's models the torso is the first body after the world, and the root of the others

_UNSTABLE = [
    int(warning)
    for warning in (
        mujoco.mjtWarning.mjWARN_BADQPOS,
        mujoco.mjtWarning.mjWARN_BADQVEL,
        mujoco.mjtWarning.mjWARN_BADQACC,
    )
]


def gymnasium_spec(file_name: str) -> mujoco.MjSpec:
    """Load a model that gymnasium ships, for editing."""
    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    return mujoco.MjSpec.from_file(str(assets / file_name))


def compile_spec(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """Compile a specification; equal, to the last bit, to what MuJoCo makes of the same XML."""
    # MuJoCo 4 warns, on stderr and in a log file, when the compiler itself scales masses
    total_mass, spec.compiler.settotalmass = spec.compiler.settotalmass, -1
    model = spec.compile()
    if total_mass > 0:
        mujoco.mj_setTotalmass(model, total_mass)
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


class Body:
    """A simulated body under one dynamics, apart from any task.

    The functions below take a `State`: the arrays `qpos` (N, nq), `qvel` (N, nv), those named in `fields`,
    each MuJoCo's quantity of that name with a leading axis of lanes, and what `derive` adds. They are views
    of live memory and must not be written. What a lane gets must not depend on the other lanes, to the last
    bit: sums run along rows of fixed length, and matrix products, whose rounding varies, are avoided.

    Attributes:
        model: the compiled model.
        frame_skip: physics steps per environment step, all with the same action.
        fields: derived quantities of `mjData` that the functions need.
        stage: the stages of MuJoCo's forward pass to run on the state AFTER a step. `mj_step` integrates
            last, so without this all derived quantities are those of the step's start.
        leftover_forces: fill `cfrc_ext` as gymnasium does, by `mj_rnePostConstraint` on what `mj_step` left
            behind: the contacts of the last stage of the integrator. `cfrc_ext` is 0 after a reset. This part
            is a loop over the lanes with contacts, for no batched call gives these forces; it costs some 5 %.
        observation_size: O.
    """

    model: mujoco.MjModel
    frame_skip: int
    fields: tuple[str, ...] = ()
    stage = mujoco.mjtStage.mjSTAGE_NONE
    leftover_forces = False
    observation_size: int

    @property
    def dt(self) -> float:
        """Seconds per environment step."""
        return self.frame_skip * self.model.opt.timestep

    def initial_state(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw positions (nq,) and velocities (nv,) for the start of an episode."""
        raise NotImplementedError

    def derive(self, state: State) -> State:
        """Return what else the functions below need in the state, computed once after each step."""
        return {}

    def observe(self, state: State) -> np.ndarray:
        """Return observations (N, O)."""
        raise NotImplementedError

    def position(self, state: State) -> np.ndarray:
        """Return where the body is on the ground (N, 2), in metres."""
        raise NotImplementedError

    def velocity(self, previous: np.ndarray, state: State) -> np.ndarray:
        """Return the velocity on the ground (N, 2) in m/s; `previous` (N, 2) is the position before the step."""
        return (self.position(state) - previous) / self.dt

    def shared_reward(self, state: State, actions: np.ndarray) -> np.ndarray:
        """Return the part of the reward (N,) that does not depend on the task; actions (N, A) are clipped."""
        raise NotImplementedError

    def unhealthy(self, state: State) -> np.ndarray:
        """Return which lanes (N,) end their episode."""
        return np.zeros(len(state["qpos"]), bool)


class MujocoTasks(TaskDistribution):
    """Base of the task distributions over a MuJoCo body.

    Attributes:
        bodies: for each dynamics, what builds the body.
        body: the body under the chosen dynamics.
    """

    bodies: ClassVar[dict[str, Callable[[], Body]]]

    def __init__(self, dynamics: str = "paper", horizon: int = 200):
        if dynamics not in self.bodies:
            raise ValueError(f"dynamics = {dynamics!r}; allowed: {', '.join(map(repr, self.bodies))}")
        self.dynamics = dynamics
        self.horizon = horizon
        self.body = self.bodies[dynamics]()
        low, high = self.body.model.actuator_ctrlrange.T
        self.observation_space = Box(-np.inf, np.inf, (self.body.observation_size,), np.float64)
        self.action_space = Box(low, high, dtype=np.float64)

    def task_reward(self, position: np.ndarray, velocity: np.ndarray, tasks: Tasks) -> np.ndarray:
        """Return the task's part of the reward (N,) from position and velocity, (N, 2) both, and the lanes' tasks."""
        raise NotImplementedError

    def change_models(self, simulation: Batch, tasks: Tasks) -> None:
        """Give each lane the model of its task, where tasks differ in it: called at the start of every episode.

        A body with `leftover_forces` cannot have it, as these are computed with one model.
        """

    def make(self, num_envs: int, threads: int = 1) -> "MujocoBatch":
        """Build a batch of `num_envs` lanes; the number of threads changes its speed and nothing else."""
        return MujocoBatch(self, num_envs, threads)


class MujocoBatch(TaskBatch):
    """N lanes of one body. Only unfinished lanes are stepped.

    A lane whose simulation becomes unstable (a non-finite or huge position, velocity or acceleration, upon
    which MuJoCo silently resets it) terminates: it keeps its previous observation, the step has reward 0, and
    `infos["blown_up"]` (N,) is true for it in that step.

    Attributes:
        simulation: the physics; its state arrays may be written between steps, for instance by a test.
    """

    distribution: MujocoTasks

    def __init__(self, distribution: MujocoTasks, num_envs: int, threads: int = 1):
        super().__init__(distribution, num_envs)
        if threads < 1:
            raise ValueError(f"threads = {threads}; allowed: at least 1")
        cores = os.cpu_count() or 1
        if threads > cores:
            warnings.warn(f"threads = {threads}, but this machine has {cores} cores: expect it slower", stacklevel=3)
        self.body = body = distribution.body
        # an mjData per lane keeps each lane's contacts
        self.simulation = Batch(body.model, num_envs, threads, persistent=body.leftover_forces)
        self.state = {name: self.simulation.bind(name) for name in ("qpos", "qvel", *body.fields)}
        self.controls = self.simulation.bind("ctrl")
        if body.leftover_forces:
            self.scratch = mujoco.MjData(body.model)
            self.contacts = self.simulation.bind("ncon")
            self.state["cfrc_ext"] = np.zeros((num_envs, body.model.nbody, 6))
        self.render_fps = round(1 / body.dt)
        self.renderer: mujoco.Renderer | None = None

    def reset_lanes(self, seeds: Sequence[int | None]) -> np.ndarray:
        """Put every lane in an initial state of the body, and run `mj_forward` there."""
        body = self.body
        states = [body.initial_state(np.random.default_rng(seed)) for seed in seeds]
        self.distribution.change_models(self.simulation, self.tasks)
        self.simulation.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
        self.state["qpos"][:] = [qpos for qpos, _ in states]
        self.state["qvel"][:] = [qvel for _, qvel in states]
        self.simulation.forward()
        if body.leftover_forces:
            self.state["cfrc_ext"][:] = 0.0
        self.state.update(body.derive(self.state))
        return body.observe(self.state)

    def step_lanes(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance the unfinished lanes by `frame_skip` physics steps."""
        body, state, active = self.body, self.state, ~self.finished
        previous = body.position(state).copy()
        self.controls[:] = actions
        self.simulation.step(active, body.frame_skip, body.stage)
        if body.leftover_forces:
            self._collect_forces(active)
        blown_up = self._unstable() & active
        with np.errstate(over="ignore", invalid="ignore"):  # in lanes that blew up
            state.update(body.derive(state))
            observations = body.observe(state)
            velocity = body.velocity(previous, state)
            rewards = self.distribution.task_reward(body.position(state), velocity, self.tasks)
            rewards += body.shared_reward(state, actions)
        if blown_up.any():
            observations[blown_up] = self.observations[blown_up]
            rewards[blown_up] = 0.0
        return observations, rewards, body.unhealthy(state) | blown_up, {"blown_up": blown_up}

    def render_lane(self, lane: int = 0, height: int = 360, width: int = 480) -> np.ndarray:
        """Return a picture (height, width, 3) uint8 of a lane, from a camera that follows the body.

        Raises:
            RuntimeError: MuJoCo cannot draw on this machine.
        """
        if self.renderer is None or (self.renderer.height, self.renderer.width) != (height, width):
            self.renderer = _renderer(self.body.model, height, width)
        data = self.simulation.get_data(lane)
        mujoco.mj_forward(self.simulation.get_model(lane), data)
        self.renderer.update_scene(data, camera="track")
        return self.renderer.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Free the memory of the renderer, if there is one."""
        if self.renderer is not None:
            self.renderer.close()
            self.renderer = None

    def _collect_forces(self, active: np.ndarray) -> None:
        forces, model, scratch = self.state["cfrc_ext"], self.body.model, self.scratch
        forces[active] = 0.0
        for lane in np.flatnonzero(active & (self.contacts > 0)).tolist():
            data = self.simulation.get_data(lane, scratch)
            mujoco.mj_rnePostConstraint(model, data)
            forces[lane] = data.cfrc_ext

    def _unstable(self) -> np.ndarray:
        warned = self.simulation.warning[:, _UNSTABLE, 1].any(axis=1)
        # the comparison is false for NaN too; beyond mjMAXVAL MuJoCo would reset the lane at the next step
        bounded = [(np.abs(self.state[name]) < mujoco.mjMAXVAL).all(axis=1) for name in ("qpos", "qvel")]
        return warned | ~bounded[0] | ~bounded[1]


_failures: list[str] = []  # why there is no renderer: a second try may abort the process


def _renderer(model: mujoco.MjModel, height: int, width: int) -> mujoco.Renderer:
    try:
        if not _failures:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the window library; the error below says it
                return mujoco.Renderer(model, height, width)
    except ValueError:  # a picture that is too large
        raise
    except Exception as error:
        _failures.append(" ".join(str(error).split()))
    raise RuntimeError(
        f"no renderer ({_failures[0]}); try MUJOCO_GL=egl (needs a GPU) or MUJOCO_GL=osmesa (needs OSMesa)"
    )
