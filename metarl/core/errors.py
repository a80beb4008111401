"""Errors that more than one part of the library raises."""


class NonFiniteError(RuntimeError):
    """A reward, observation, loss or step was NaN or infinite; the message says what, where and which task."""


class SimulationError(RuntimeError):
    """The simulator gave up on more episodes than a run allows."""
