"""Figures that experiments share."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from metarl.runs import write_atomically


def adaptation(evaluation: Any) -> Figure:
    """Performance against gradient steps: the mean with its uncertainty, over the tasks one by one."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    steps = range(len(evaluation.mean))
    axes.plot(steps, evaluation.per_task, color="0.85", linewidth=0.8, zorder=1)
    uncertainty, errors = evaluation.uncertainty
    axes.errorbar(steps, evaluation.mean, errors, marker="o", capsize=3, zorder=2)
    axes.set(xlabel="gradient steps", ylabel=evaluation.name, xticks=list(steps))
    axes.set_title(f"mean ± {uncertainty} over {evaluation.per_task.shape[1]} test tasks (grey: each task)")
    return figure


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write plain data, or leave the file as it was."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
