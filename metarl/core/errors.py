"""Errors that more than one part of the library raises, and what an error of a user's code says."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__


class NonFiniteError(RuntimeError):
    """A reward, observation, loss or step was NaN or infinite; the message says what, where and which task."""


class SimulationError(RuntimeError):
    """The simulator gave up on more episodes than a run allows."""
