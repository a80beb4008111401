"""Meta-World's environments, faster: the same trajectories to the last bit, with less Python per step and per reset.

A step of Meta-World 3.1.1 spends a quarter of its time in the physics. The rest looks names up (`data.body("hand")`),
makes small arrays, and turns rotation matrices into quaternions through scipy's checks. `faster(cls)` is a subclass of
one of its environments in which names are looked up once and what `SawyerXYZEnv` does at every step is written out.
Rewards remain Meta-World's own code.

A reset is a function of the task: it moves the hand for a hundred time steps, as long as a fifth of an episode.
`Snapshots` keeps what it leads to.

Environments of a class share one `mjModel`, whose meshes take 20 MB and tenths of a second. What a task moves in it is
moved before each step, so environments of these classes are reset by `Snapshots` and not by themselves.
"""

import math
from types import FunctionType
from typing import Any

import mujoco
import numpy as np
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from scipy.spatial.transform import Rotation

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION  # all that a time step depends on, the solver's warm start included
_LIVE = ("xpos", "site_xpos")  # fields of mjData of which environments keep views as attributes
_MOVED = ("body_pos", "site_pos")  # fields of mjModel that resets write
_KEPT = (bool, int, float, str, np.ndarray, np.generic, list, type(None))  # kinds of attributes that change


class NamedData(mujoco.MjData):
    """An `mjData` that looks a name up once."""

    def __init__(self, model: mujoco.MjModel):
        super().__init__(model)
        self._named: dict[tuple[str, str | int], Any] = {}

    def body(self, name: str | int) -> Any:
        """The views of a body."""
        return self._named.get(("body", name)) or self._look_up("body", name)

    def geom(self, name: str | int) -> Any:
        """The views of a geom."""
        return self._named.get(("geom", name)) or self._look_up("geom", name)

    def site(self, name: str | int) -> Any:
        """The views of a site."""
        return self._named.get(("site", name)) or self._look_up("site", name)

    def joint(self, name: str | int) -> Any:
        """The views of a joint."""
        return self._named.get(("joint", name)) or self._look_up("joint", name)

    def _look_up(self, kind: str, name: str | int) -> Any:
        found = self._named[kind, name] = getattr(super(), kind)(name)
        return found


class QuickRotation:
    """What Meta-World uses of `scipy.spatial.transform.Rotation`: quaternions of matrices, equal to the last bit."""

    def __init__(self, quaternion: np.ndarray):
        self._quaternion = quaternion

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> "QuickRotation":
        """The rotation of an orthogonal matrix (3, 3); of any other one, what scipy makes of it."""
        rows = matrix.tolist()
        if not _is_orthogonal(rows):
            return cls(Rotation.from_matrix(matrix).as_quat())
        (a, b, c), (d, e, f), (g, h, i) = rows
        trace = a + e + i
        largest = max(a, e, i, trace)  # the first one of several
        if largest == a:
            x, y, z, w = 1 - trace + 2 * a, d + b, g + c, h - f
        elif largest == e:
            x, y, z, w = b + d, 1 - trace + 2 * e, h + f, c - g
        elif largest == i:
            x, y, z, w = c + g, f + h, 1 - trace + 2 * i, d - b
        else:
            x, y, z, w = h - f, c - g, d - b, 1 + trace
        norm = math.sqrt(x * x + y * y + z * z + w * w)
        return cls(np.array([x / norm, y / norm, z / norm, w / norm]))

    def as_quat(self) -> np.ndarray:
        """The quaternion (4,), its scalar part last."""
        return self._quaternion


def _is_orthogonal(rows: list[list[float]]) -> bool:
    """Whether a matrix is a rotation, more closely than scipy asks for before it mends one."""
    (a, b, c), (d, e, f), (g, h, i) = rows
    errors = (a * a + b * b + c * c - 1, d * d + e * e + f * f - 1, g * g + h * h + i * i - 1)
    products = (a * d + b * e + c * f, a * g + b * h + c * i, d * g + e * h + f * i)
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return determinant > 0 and max(map(abs, errors + products)) < 1e-13


class _Faster:
    """Methods of `SawyerXYZEnv` and gymnasium's `MujocoEnv`, which `faster` puts into a subclass.

    Attributes:
        _shared: the model of all environments of the class, in a list, once there is one.
        _moved: views of the model's fields that tasks change, and the values that they have in this environment's task.
    """

    def _initialize_simulation(self: Any) -> tuple[mujoco.MjModel, mujoco.MjData]:
        if not self._shared:
            made, _ = super(SawyerXYZEnv, self)._initialize_simulation()  # type: ignore[misc]  # of MujocoEnv
            self._shared.append(made)
        return self._shared[0], NamedData(self._shared[0])

    def touching_object(self: Any, object_geom_id: int) -> bool:
        data = self.data
        force = [0.0, 0.0]
        pads = (data.geom("leftpad_geom").id, data.geom("rightpad_geom").id)
        contacts = data.contact
        for number, pair in enumerate(contacts.geom.tolist()):
            if object_geom_id in pair:
                for side, pad in enumerate(pads):
                    if pad in pair:
                        force[side] += data.efc_force[contacts.efc_address[number]]
        return min(force) > 0

    def _get_curr_obs_combined_no_goal(self: Any) -> np.ndarray:
        data = self.data
        apart = data.body("rightclaw").xpos - data.body("leftclaw").xpos
        found = np.zeros(4 + self._obs_obj_max_len)
        found[:3] = data.body("hand").xpos
        found[3] = min(max(math.sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
        positions, quaternions = self._get_pos_objects(), self._get_quat_objects()
        for number in range(len(positions) // 3):
            start = 4 + 7 * number
            found[start : start + 3] = positions[3 * number : 3 * number + 3]
            found[start + 3 : start + 7] = quaternions[4 * number : 4 * number + 4]
        return found

    def _get_obs(self: Any) -> np.ndarray:
        now = self._get_curr_obs_combined_no_goal()
        goal = np.zeros(3) if self._partially_observable else self._get_pos_goal()
        observation = np.concatenate((now, self._prev_obs, goal))
        self._prev_obs = now
        return observation

    def step(self: Any, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """As Meta-World's: what differs is how fast it is."""
        if not self._set_task_called:
            raise RuntimeError("You must call env.set_task before using env.step")
        if self.curr_path_length >= self.max_path_length:
            raise ValueError("You must reset the env manually once truncate==True")
        for field, values in self._moved:
            field[:] = values
        self.set_xyz_action(action[:3])
        model, data = self.model, self.data
        data.ctrl[:] = (action[-1], -action[-1])
        mujoco.mj_step(model, data, nstep=self.frame_skip)
        self.curr_path_length += 1
        mujoco.mj_forward(model, data)
        space = self.sawyer_observation_space
        observation = np.minimum(np.maximum(self._get_obs(), space.low), space.high)
        self._last_stable_obs = observation
        reward, info = self.evaluate_state(observation, action)
        return observation.copy(), reward, False, self.curr_path_length == self.max_path_length, info


def faster(cls: type[SawyerXYZEnv]) -> type[SawyerXYZEnv]:
    """A subclass that makes the same trajectories; methods that the class has in place of inherited ones remain."""
    methods: dict[str, Any] = {
        name: method
        for name, method in vars(_Faster).items()
        if isinstance(method, FunctionType) and getattr(cls, name) is getattr(SawyerXYZEnv, name)
    }
    for parent in reversed(cls.__mro__):
        for name, method in vars(parent).items():
            if isinstance(method, FunctionType) and "Rotation" in method.__code__.co_names:
                methods[name] = _with_quick_rotations(method)
    return type(cls.__name__, (cls,), {**methods, "_shared": [], "_moved": ()})


def _with_quick_rotations(method: FunctionType) -> FunctionType:
    """The same function with `QuickRotation` for the global name `Rotation`."""
    surroundings = {**method.__globals__, "Rotation": QuickRotation}
    return FunctionType(method.__code__, surroundings, method.__name__, method.__defaults__, method.__closure__)


class Snapshots:
    """What resets lead to: the state of the simulator, what the task changed in the model, and attributes, by task."""

    def __init__(self) -> None:
        self._kept: dict[Any, tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any], np.ndarray]] = {}

    def reset(self, env: SawyerXYZEnv, key: Any) -> np.ndarray:
        """Reset an environment to its task, which `key` names; return the first observation."""
        if key not in self._kept:
            observation, _ = env.reset()
            self._kept[key] = (*_taken(env), observation)
        else:
            _restore(env, *self._kept[key][1:3])
        moved = self._kept[key][0]
        env._moved = tuple((getattr(env.model, name), values) for name, values in moved.items())
        return self._kept[key][3].copy()


def _taken(env: SawyerXYZEnv) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """Positions in the model, the state, and attributes: copies, and of views of the simulator what they show."""
    state = np.empty(mujoco.mj_stateSize(env.model, _STATE))
    mujoco.mj_getState(env.model, env.data, state, _STATE)
    moved = {name: getattr(env.model, name).copy() for name in _MOVED}
    attributes = {name: _copied(value, env.data) for name, value in vars(env).items() if isinstance(value, _KEPT)}
    return moved, state, attributes


def _restore(env: SawyerXYZEnv, state: np.ndarray, attributes: dict[str, Any]) -> None:
    mujoco.mj_setState(env.model, env.data, state, _STATE)
    for name, value in attributes.items():
        setattr(env, name, value.of(env.data) if isinstance(value, _View) else _copied(value, env.data))


class _View:
    """A row of a field of `mjData`, which an environment has as an attribute that changes with the simulation."""

    def __init__(self, field: str, row: int):
        self.field, self.row = field, row

    def of(self, data: mujoco.MjData) -> np.ndarray:
        """The same row of another simulation."""
        return getattr(data, self.field)[self.row]


def _copied(value: Any, data: mujoco.MjData) -> Any:
    """A copy of an attribute, or a `_View` if it shows the simulator's memory."""
    if isinstance(value, list):
        return list(value)
    if not isinstance(value, np.ndarray):
        return value
    for field in _LIVE:
        rows = getattr(data, field)
        if np.may_share_memory(rows, value):
            offset = value.__array_interface__["data"][0] - rows.__array_interface__["data"][0]
            return _View(field, offset // rows.strides[0])
    return value.copy()
