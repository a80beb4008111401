"""Recipes: named settings of an experiment, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Settings of an experiment under a name.

    Attributes:
        settings: by flat name, where they differ from those of the experiment's paper recipe; those of the paper
            recipe itself, where they differ from the defaults.
        published: mean returns that the paper reports after 0, 1, ... gradient steps.
        note: where the settings come from, or what they show.
        evaluations: changes of the settings for each evaluation of a run, by the prefix of its metrics in results; the
            first one is the one that tables show.
        trained_as: name of another recipe whose runs are evaluated with these settings when results are reproduced,
            because both are trained alike: they differ in the tasks of evaluations alone.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[float, ...] = ()
    note: str = ""
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    trained_as: str = ""

    def __or__(self, changes: Mapping[str, Any]) -> "Recipe":
        """The recipe with more settings; what was published holds for the recipe as it was."""
        return Recipe({**self.settings, **changes})


def small_batches(num_tasks: int, iterations: int, **changes: Any) -> Recipe:
    """More updates from as many environment steps: a part of the paper's tasks in each, and more iterations.

    As the standard deviation of a policy falls, an inner gradient's noise moves it further; milestones give smaller
    inner steps after some iterations.
    """
    settings = {"second_order": False, "gae_lambda": 0.95, "support_lambda": 0.8, "max_kl": 0.02}
    settings |= {"num_tasks": num_tasks, "iterations": iterations, "evaluate_every": 250}
    return Recipe({**settings, **changes})


RECOMMENDED = "recommended"
PENALTY = {"bounds_penalty": 0.05}


def recommended(num_tasks: int, iterations: int, **changes: Any) -> Recipe:
    """The recipe that all environments share: three inner steps that all count, in units of the policy's std.

    `num_tasks` makes about 100 episodes before and after each inner step, and is even where there are two tasks. The
    other differences: the baseline has no products of observations that have more than 40 numbers (ants); where
    episodes can end by a fall there is a survival bonus; and navigation differentiates through the inner steps of
    `lvc`, for with first order its standard deviation falls until the paths are too narrow to show how far a goal is.
    """
    settings = {"inner_steps": 3, "multi_step": True, "step_unit": "std", "averaged_steps": True}
    settings |= {"inner_step_size": 0.06, "gae_lambda": 0.95, "support_lambda": 0.8, "max_kl": 0.02, **PENALTY}
    return Recipe({**settings, "num_tasks": num_tasks, "iterations": iterations, "evaluate_every": 50, **changes})


def memory(num_tasks: int, iterations: int, **changes: Any) -> Recipe:
    """RL^2 with trials of two episodes, on as many environment steps as the other recipes of its environment.

    The penalty is that of the recommended recipe. An evaluation plays the two episodes of a trial.
    """
    settings = {"method": "rl2", "episodes_per_task": 2, "evaluation_steps": 1, "gae_lambda": 0.95, **PENALTY}
    return Recipe({**settings, "num_tasks": num_tasks, "iterations": iterations, "evaluate_every": 50, **changes})


def on_peers_bodies(recipe: Recipe, name: str = RECOMMENDED) -> dict[str, Recipe]:
    """A recipe of this name on what ProMP, PEARL and VariBAD simulate.

    Episodes have 200 steps as PEARL's and VariBAD's, not 100 as ProMP's: the few curves that can be read are PEARL's.
    """
    return {f"{name}, peers": recipe | {"dynamics": "peers", "horizon": 200}}


def for_all_dynamics(recipe: Recipe, name: str = RECOMMENDED) -> dict[str, Recipe]:
    """A recipe of this name; on gymnasium's own bodies, with the shorter episodes of other libraries; on peers'."""
    short = recipe | {"dynamics": "gymnasium", "horizon": 100}
    return {name: recipe, f"{name}, gymnasium": short, **on_peers_bodies(recipe, name)}


def schedule(sizes: Mapping[int, float]) -> dict[str, Any]:
    """The settings of inner step sizes by the meta-iterations after which they hold."""
    return {"inner_step_size_milestones": tuple(sizes), "milestone_step_sizes": tuple(sizes.values())}


def quadratic(recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """The same recipes with products of observations in the baseline."""
    return {f"{name}, quadratic": recipe | {"baseline": "quadratic"} for name, recipe in recipes.items()}


HALVED = {"extra_step_scale": 0.5}  # published returns that go on changing after one step had no factor of 0.01
SMALL = "first-order, small batches"

ORACLE = {"inner_steps": 0, "observe_task": True, "evaluation_steps": 0}
CONTEXT = {
    "adaptation": "cavia"
}  # the paper's context vector, whose learned start the first layer's bias can stand for

GAE = {"first-order, GAE 0.95": Recipe({"second_order": False, "gae_lambda": 0.95})}
SHORT_COMPARISON = {
    "maml, lvc": Recipe({"estimator": "lvc"}),
    "first-order": Recipe({"second_order": False}),
    **GAE,
}
COMPARISON = {
    "exact products": Recipe({"hvp_sample_fraction": 1.0}),
    **SHORT_COMPARISON,
    **quadratic(GAE),
    "ProMP": Recipe({"estimator": "likelihood-ratio", "outer": "ppo"}),
    "DiCE": Recipe({"estimator": "dice"}),
    "E-MAML": Recipe({"initial_sampling": True}),
    "Meta-SGD": Recipe({"adaptation": "meta-sgd"}),
    "ANIL": Recipe({"adaptation": "anil"}),
}


def pretrained(step_size: float, published: tuple[float, ...], **changes: Any) -> Recipe:
    """One policy for all tasks, trained without an inner step and then adapted, as the paper compares with."""
    return Recipe({"inner_steps": 0, "inner_step_size": step_size, **changes}, published)


def untrained(step_size: float, published: tuple[float, ...], **changes: Any) -> Recipe:
    """The random initial policy, adapted."""
    return Recipe({"iterations": 0, "inner_step_size": step_size, **changes}, published)
