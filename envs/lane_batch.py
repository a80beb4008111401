"""A stand-in for the parts of `mujoco.batch.Batch` that are used here, for MuJoCo before 3.17, which lacks it.

Every lane has an `mjData` of its own, and Python threads step them: `mj_step` releases the interpreter's lock. Numbers
are the same as those of `mj_step` on one lane, to the last bit; the speed is lower, for each lane is a Python call.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION  # everything that the next step depends on, the warm start included
_COMPONENTS = {
    "qpos": mujoco.mjtState.mjSTATE_QPOS,
    "qvel": mujoco.mjtState.mjSTATE_QVEL,
    "ctrl": mujoco.mjtState.mjSTATE_CTRL,
}


class Batch:
    """N simulations of one model; the meaning of everything is that of `mujoco.batch.Batch`.

    Attributes:
        state: (N, size) the state of each lane, of which `qpos`, `qvel` and `ctrl` are views.
        warning: (N, warnings, 2), last information and number of each kind of warning since the last reset.
    """

    def __init__(self, model: mujoco.MjModel, nsim: int, nthread: int, persistent: bool = True):
        self.model = model
        self._models = [model] * nsim
        self._lanes = [mujoco.MjData(model) for _ in range(nsim)]
        self._pool = ThreadPoolExecutor(nthread) if nthread > 1 else None
        self._threads = nthread
        self._bound: dict[str, np.ndarray] = {}
        self._expanded: dict[str, np.ndarray] = {}
        self.state = np.zeros((nsim, mujoco.mj_stateSize(model, _STATE)))
        self.warning = np.zeros((nsim, int(mujoco.mjtWarning.mjNWARNING), 2), int)
        self.qpos, self.qvel, self.ctrl = (self.bind(name) for name in _COMPONENTS)
        self.reset(mujoco.mjtStage.mjSTAGE_NONE)

    def bind(self, name: str) -> np.ndarray:
        """Return the live array (N, ...) of a part of the state, or of a field of `mjData` after each call."""
        if name in _COMPONENTS:
            component = int(_COMPONENTS[name])
            start = mujoco.mj_stateSize(self.model, int(_STATE) & (component - 1))  # components lie in order of bits
            return self.state[:, start : start + mujoco.mj_stateSize(self.model, component)]
        if name not in self._bound:
            value = np.asarray(getattr(self._lanes[0], name))
            self._bound[name] = np.zeros((len(self._lanes), *value.shape), value.dtype)
        return self._bound[name]

    def expand(self, name: str) -> np.ndarray:
        """Return an array (N, ...) of a field of the model for each lane; `set_const` applies what is written there."""
        if name not in self._expanded:
            self._expanded[name] = np.stack([getattr(model, name) for model in self._models])
        return self._expanded[name]

    def set_const(self) -> None:
        """Give each lane a model of its own with the values of the expanded fields, and derive constants from them."""
        for lane, data in enumerate(self._lanes):
            self._models[lane] = model = copy.copy(self.model)
            for name, values in self._expanded.items():
                getattr(model, name)[:] = values[lane]
            mujoco.mj_setConst(model, data)

    def get_model(self, lane: int) -> mujoco.MjModel:
        """Return the model of a lane."""
        return self._models[lane]

    def get_data(self, lane: int, data: mujoco.MjData | None = None) -> mujoco.MjData:
        """Return a copy of a lane's `mjData`; with `data`, which would be written elsewhere, the lane's own."""
        mujoco.mj_setState(self._models[lane], self._lanes[lane], self.state[lane], _STATE)
        return copy.copy(self._lanes[lane]) if data is None else self._lanes[lane]

    def reset(self, stage: mujoco.mjtStage) -> None:
        """Put all lanes in the model's default state, and compute nothing: the only stage there is here."""
        assert stage == mujoco.mjtStage.mjSTAGE_NONE
        for lane, data in enumerate(self._lanes):
            mujoco.mj_resetData(self._models[lane], data)
            mujoco.mj_getState(self._models[lane], data, self.state[lane], _STATE)
        self.warning[:] = 0

    def forward(self) -> None:
        """Run `mj_forward` in all lanes."""
        self._run(np.ones(len(self._lanes), bool), mujoco.mj_forward)

    def step(self, active: np.ndarray, nstep: int, stage: mujoco.mjtStage) -> None:
        """Step the active lanes (N,) `nstep` times, and run `mj_forward` after it if the stage is mjSTAGE_ACC."""

        def advance(model: mujoco.MjModel, data: mujoco.MjData) -> None:
            mujoco.mj_step(model, data, nstep)
            if stage == mujoco.mjtStage.mjSTAGE_ACC:
                mujoco.mj_forward(model, data)

        self._run(active, advance)

    def _run(self, active: np.ndarray, advance: Callable[[mujoco.MjModel, mujoco.MjData], None]) -> None:
        def run(lanes: Sequence[int]) -> None:
            for lane in lanes:
                model, data, state = self._models[lane], self._lanes[lane], self.state[lane]
                mujoco.mj_setState(model, data, state, _STATE)
                advance(model, data)
                mujoco.mj_getState(model, data, state, _STATE)
                self.warning[lane, :, 1] = data.warning.number
                for name, values in self._bound.items():
                    values[lane] = getattr(data, name)

        shares = [share.tolist() for share in np.array_split(np.flatnonzero(active), self._threads)]
        list(self._pool.map(run, shares) if self._pool else map(run, shares))
