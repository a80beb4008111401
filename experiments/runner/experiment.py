"""What an experiment script stands for: its settings, its recipes, and how its learner is trained and evaluated."""

import dataclasses
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from tqdm import tqdm

from metarl.core.distributed import Processes
from metarl.core.evaluation import Evaluation
from metarl.core.settings import SettingError, nearest
from metarl.experiments.runner.flat_settings import from_flat, require_effect, to_flat, updated
from metarl.experiments.runner.recipes import RECOMMENDED, Recipe
from metarl.experiments.runner.settings import Settings
from metarl.rl.task_distribution import describe_error
from metarl.runs import RunError

PAPER = "paper"  # what users call the paper's own recipe, whichever row of results it is


class RunLearner(Protocol):
    """What a run needs of a learner; its other attributes are the business of its experiment.

    `dataclasses.replace(learner, task_chunk=...)` must give a learner that continues from the same state.
    """

    @property
    def iteration(self) -> int: ...

    @property
    def processes(self) -> Processes: ...

    @property
    def device(self) -> str: ...

    @property
    def task_chunk(self) -> int | None: ...

    def step(self) -> dict[str, float]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Experiment:
    """What one script stands for. Subclasses say how a kind of learner is built, trained and evaluated.

    Attributes:
        name: of the script, and of the runs it makes.
        description: one sentence, for the help.
        settings: the dataclass of its settings.
        recipes: named settings, by the names that results have.
        paper_recipe: the name of the one with the paper's settings, which users call `paper`. There need be none of
            this name; the first recipe then has its part.
        judges_start: whether the selection metric of an iteration is that of the meta-parameters that it begins with,
            as returns in training are, and not of those that it ends with.
    """

    judges_start: ClassVar[bool] = True

    name: str
    description: str
    settings: type[Settings]
    recipes: Mapping[str, Recipe] = field(default_factory=lambda: {"default": Recipe()})
    paper_recipe: str = "maml"

    @property
    def default_recipe(self) -> str:
        """What runs when no recipe is named: the recommended one where there is one, else the paper's."""
        return RECOMMENDED if RECOMMENDED in self.recipes else PAPER

    @property
    def base_recipe(self) -> str:
        """The recipe to whose settings the others are changes: the paper's, or else the first one."""
        return self.paper_recipe if self.paper_recipe in self.recipes else next(iter(self.recipes))

    def recipe_name(self, name: str, changes: Mapping[str, Any] | None = None) -> str:
        """The name in `recipes` that `--recipe NAME` means, an empty one the default; SettingError if unknown.

        Args:
            name: that the user gave.
            changes: of the recipe's settings, by flat name; what is the default may depend on them.
        """
        name = name or self.default_recipe
        name = self.base_recipe if name == PAPER else name
        if name not in self.recipes:
            known = list(map(self.shown_name, self.recipes))
            raise SettingError(f"--recipe = {name!r}; allowed: {', '.join(map(repr, known))}{nearest(name, known)}")
        return name

    def shown_name(self, recipe: str) -> str:
        """What users call a recipe of this name in `recipes`."""
        return PAPER if recipe == self.paper_recipe else recipe

    def values(self, recipe: str = "", changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The flat values of a recipe's settings with changes.

        Raises:
            SettingError: a change that cannot be, or one that has no effect.
        """
        values = to_flat(self.settings())
        name = self.recipe_name(recipe, changes)
        for layer in (self.base_recipe, *[name] * (name != self.base_recipe)):
            values = updated(self.settings, values, self.recipes[layer].settings)
        settings = from_flat(self.settings, updated(self.settings, values, changes or {}))
        require_effect(settings, changes or ())
        return to_flat(settings)

    def configure(self, recipe: str = "", **changes: Any) -> Any:
        """The settings of a recipe with changes, by flat name; SettingError for a change that cannot be."""
        return from_flat(self.settings, self.values(recipe, changes))

    def build(self, settings: Any) -> Any:
        """Make the learner; SettingError for settings that do not go together."""
        raise NotImplementedError

    def data_of(self, learner: Any) -> dict[str, Any]:
        """What config.json records of the data that a run begins with."""
        return {}

    def check_data(self, config: Mapping[str, Any], learner: Any) -> None:
        """RunError where the data are other ones than those that a run of this config.json began with."""

    def check_continuable(self, learner: Any) -> None:
        """RunError if a learner's state, as it was loaded, is enough to evaluate it but not to train on."""

    def advance(self, settings: Any, learner: Any) -> tuple[Any, dict[str, float]]:
        """Train up to the next record; return the learner, which may be another object now, and its metrics."""
        raise NotImplementedError

    def selection_metric(self, settings: Any, metrics: Mapping[str, float]) -> float:
        """The metric by which `best.pt` is chosen; larger is better."""
        raise NotImplementedError

    def progress_text(self, settings: Any, metrics: Mapping[str, float]) -> str:
        """What the progress bar shows."""
        raise NotImplementedError

    def evaluate(self, settings: Any, learner: Any, split: str) -> Evaluation:
        """Evaluate after each gradient step, on the `validation` tasks while training and on `test` tasks at its end.

        Collective: every rank must call it.
        """
        raise NotImplementedError

    def plots(self, evaluation: Any) -> dict[str, Any]:
        """Pictures of an evaluation of its own, by name."""
        return {}

    def record(self, settings: Any, learner: Any) -> dict[str, Any]:
        """What the file of an evaluation says of the run."""
        raise NotImplementedError


def find_experiment(name: str) -> Experiment:
    """The experiment of a script in `metarl.experiments`; RunError if there is none, or if it cannot be imported."""
    module = f"metarl.experiments.{name}"
    if not name.isidentifier() or importlib.util.find_spec(module) is None:
        raise RunError(f"experiment {name!r} is not known to this version of metarl")
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # such as a package that an extra installs
        raise RunError(f"the script of experiment {name!r} cannot be imported: {describe_error(error)}") from error
    if not isinstance(found := getattr(imported, "EXPERIMENT", None), Experiment):
        raise RunError(f"experiment {name!r} is not known to this version of metarl")
    return found


class DeviceMemoryError(RuntimeError):
    """The device has too little memory; the message says which setting to lower."""


def step(settings: Settings, learner: Any, num_tasks: int) -> tuple[Any, dict[str, float]]:
    """Do one meta-iteration; where the device lacks memory, again in smaller chunks if the settings allow it.

    An iteration that failed has changed nothing, and samples the same tasks and episodes again.

    Args:
        settings: of the run.
        learner: of any kind.
        num_tasks: M, tasks in its meta-batch.

    Returns:
        the learner, which is another one with smaller chunks where that was necessary, and its metrics.
    """
    while True:
        try:
            return learner, learner.step()
        except torch.OutOfMemoryError as error:
            own = learner.processes.shard(num_tasks)
            chunk = min(learner.task_chunk or num_tasks, own.stop - own.start)
            smaller = "--task-chunk, --num-tasks" if chunk > 1 else "--num-tasks"
            if chunk == 1 or not settings.machine.shrink_chunks:
                raise DeviceMemoryError(
                    f"{learner.device} is out of memory with {chunk} tasks at a time; lower {smaller} or the network"
                ) from error
        smaller_chunks = dataclasses.replace(learner, task_chunk=(chunk + 1) // 2)
        learner.close()
        learner = smaller_chunks
        torch.cuda.empty_cache()
        tqdm.write(f"{learner.device} is out of memory; now {learner.task_chunk} tasks at a time", file=sys.stderr)
