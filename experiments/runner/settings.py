"""The settings of a run: parts that are frozen dataclasses, most of them the library's own, each setting declared once.

A run's settings are a frozen dataclass whose fields are parts. A part may have variants, such as the outer optimisers,
of which a setting of its own chooses one. Flags, help texts, JSON files and checks are made from the declarations.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metarl.core.settings import setting
from metarl.rl.learner import Learner

RUN, EVALUATION, MACHINE = "run and records", "evaluation", "machine"


def same_as(kind: type, name: str, **changes: Any) -> Any:
    """Declare a setting as another dataclass does: help, bounds and all, but for changes such as of the `default`."""
    [field] = [field for field in dataclasses.fields(kind) if field.name == name]
    return dataclasses.field(default=changes.pop("default", field.default), metadata={**field.metadata, **changes})


def part(kind: type, group: str) -> Any:
    """Declare a part of a run's settings.

    Args:
        kind: its dataclass.
        group: the heading of its flags in the help.
    """
    return dataclasses.field(default=kind(), metadata={"group": group, "variants": {"": kind}, "choice": None})


def variants(choice: str, help: str, kinds: Mapping[str, type], group: str) -> Any:
    """Declare a part that has variants, each a dataclass of its own; the first one is the default.

    Args:
        choice: the name of the setting that chooses the variant.
        help: the meaning of that setting.
        kinds: the dataclasses by the values of that setting.
        group: the heading of its flags in the help.
    """
    name = next(iter(kinds))
    chooses = setting(name, help, choices=tuple(kinds))
    [field] = dataclasses.fields(dataclasses.make_dataclass("Choice", [(choice, str, chooses)]))
    return dataclasses.field(default=kinds[name](), metadata={"group": group, "variants": kinds, "choice": field})


@dataclass(frozen=True)
class RunSettings:
    """How long a run is, and how often it is saved."""

    seed: int = same_as(Learner, "seed")
    iterations: int = setting(100, "meta-iterations in all; 0 evaluates without training", at_least=0, changeable=True)
    checkpoint_every: int = setting(1, "iterations between checkpoints", at_least=1, changeable=True)


@dataclass(frozen=True)
class EvaluationSettings:
    """How a learner is evaluated on held-out tasks."""

    every: int = setting(
        25,
        "iterations between evaluations on validation tasks; 0 for none",
        at_least=0,
        flag="evaluate_every",
        changeable=True,
    )
    num_tasks: int = setting(40, "held-out tasks", at_least=1, flag="evaluation_tasks", changeable=True)
    inner_steps: int = setting(3, "gradient steps on them", at_least=0, flag="evaluation_steps", changeable=True)


@dataclass(frozen=True)
class MachineSettings:
    """Where a run computes, which changes none of its numbers on one type of device."""

    device: str = setting("auto", "where learning happens", choices=("auto", "cpu", "cuda"), changeable=True)
    threads: int = setting(
        0,
        "threads of physics and mathematics in each process; 0 divides the machine's cores between its processes",
        at_least=0,
        changeable=True,
    )
    task_chunk: int = setting(
        0, "tasks handled at a time; 0 chooses by the cache, and on a GPU takes all", at_least=0, changeable=True
    )
    shrink_chunks: bool = setting(
        False, "halve the task chunk whenever the GPU is out of memory; with one process", changeable=True
    )


@dataclass(frozen=True)
class Settings:
    """What the settings of every run have; subclasses add parts, or declare these again as subclasses of the parts."""

    run: RunSettings = part(RunSettings, RUN)
    evaluation: EvaluationSettings = part(EvaluationSettings, EVALUATION)
    machine: MachineSettings = part(MachineSettings, MACHINE)

    @property
    def without_effect(self) -> Mapping[str, str]:
        """The flat names of settings that have no effect, each with the name of the setting that takes it away.

        It is for settings whose effect depends on another part's; variants of one part need it not.
        """
        return {}
