"""Evaluations: metrics of every test task after each gradient step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """How well a learner does on tasks that it did not train on.

    Attributes:
        metric: name of what is measured, such as `return` or `accuracy`.
        per_task: its values after 0 ... S gradient steps, (S + 1, M).
        others: further metrics by name, (S + 1, M) after each step, or (M,) where they have no steps.
        step_name: what the S steps are, in words for tables and plots.
    """

    step_name: ClassVar[str] = "gradient steps"

    metric: str
    per_task: np.ndarray
    others: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def mean(self) -> np.ndarray:
        """Mean over tasks after each gradient step, (S + 1,)."""
        return self.per_task.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of the mean over tasks, (S + 1,); NaN for a single task, or where a value is infinite."""
        return np.array([standard_error(values) for values in self.per_task])

    @property
    def metrics(self) -> dict[str, float]:
        """Means over tasks by name, as `metrics.jsonl` and TensorBoard show them."""
        return {name: float(values.mean()) for name, values in self._measured.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain data: of each metric the mean, its standard error over tasks and every task; None if not finite."""
        return {
            name: {
                "mean": _finite(values.mean()),
                "standard_error": _finite(standard_error(values)),
                "per_task": [_finite(value) for value in values.tolist()],
            }
            for name, values in self._measured.items()
        }

    @property
    def _measured(self) -> dict[str, np.ndarray]:
        """Each metric of every task, (M,), by name."""
        found = {}
        for name, values in {self.metric: self.per_task, **self.others}.items():
            if values.ndim == 1:
                found[name if "/" in name else f"{self.metric}/{name}"] = values
            else:
                found |= {f"{name}/step_{step}": row for step, row in enumerate(values)}
        return found


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of values (M,); NaN for a single one."""
    if len(values) == 1:
        return math.nan
    with np.errstate(invalid="ignore", over="ignore"):  # many steps on a hard task may diverge
        return float(values.std(ddof=1)) / math.sqrt(len(values))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
