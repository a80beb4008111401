"""Experiment scripts: launchers, the commands on their runs, and what was measured with them."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarl.experiments.runner.start import open_run

__all__ = ["open_run"]

# OpenMP threads that spin while they wait take the cores from the simulator's threads; this makes them sleep soon,
# which gave 30 % more environment steps per second on two cores. It has an effect only before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from metarl.experiments.runner.start import open_run  # imported when it is first used: it imports torch

    return open_run
