"""Read files of older versions: the flat settings of version 1 of config.json, and states of old checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

from metarl.core.settings import SettingError
from metarl.experiments.runner.flat_settings import flat_settings

RENAMED = {  # settings of version 1 whose name is another one now
    "tasks": "num_tasks",
    "episodes": "episodes_per_task",
    "later_factor": "extra_step_scale",
    "learner": "method",
    "product_fraction": "hvp_sample_fraction",
}
NONE_WAS_ZERO = ("final_learning_rate", "clip")  # settings of few-shot learning


def flat_values(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat values of a configuration of version 1, which named all settings, with or without effect.

    Args:
        kind: the class of the run's settings today.
        config: the content of config.json.

    Raises:
        SettingError: a setting that cannot be said today.
    """
    settings, values = config["settings"], {}
    for name, value in settings.items():
        value = tuple(value) if isinstance(value, list) else value
        if name == "order":
            name, value = "second_order", value == "second"
        elif name in NONE_WAS_ZERO:
            value = value or None
        values[RENAMED.get(name, name)] = value
    try:
        values |= _schedule(config.get("resumed", []))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SettingError(f"resumed cannot be read: {config.get('resumed')!r}") from error
    known = flat_settings(kind)
    for name in values:
        if name not in known:
            raise SettingError(f"setting {name} of an older version has no successor; allowed: {', '.join(known)}")
    chosen = {setting.choice: values.get(setting.choice, known[setting.choice].field.default)
              for setting in known.values() if setting.choice}  # fmt: skip
    return {n: v for n, v in values.items() if not known[n].variants or chosen[known[n].choice] in known[n].variants}


def _schedule(resumed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The step sizes of a run that was stopped and resumed with others: milestones, and the size at its start."""
    changes = {of["iteration"]: of["changed"]["inner_step_size"] for of in resumed
               if "inner_step_size" in of.get("changed", {})}  # fmt: skip
    if not changes:
        return {}
    first, *_ = (before for before, _ in changes.values())
    return {
        "inner_step_size": first,
        "inner_step_size_milestones": tuple(changes),
        "milestone_step_sizes": tuple(size for _, size in changes.values()),
    }


def checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a checkpoint with today's names; one of today as it is."""
    learner, progress = dict(state["learner"]), dict(state["progress"])
    if "best_return" in progress:
        progress["best_metric"] = progress.pop("best_return")
    outer = learner.get("outer")
    if isinstance(outer, dict) and "mean" in outer:
        moments = {"count": outer["count"], "mean": {"theta": outer["mean"]}, "square": {"theta": outer["square"]}}
        others = {name: value for name, value in outer.items() if name not in moments}
        learner["outer"] = {"adam": moments, **others}
    if isinstance(learner.get("adam"), dict) and 0 in learner["adam"]:
        learner["adam"] = _adam_by_name(learner["adam"], list(learner["theta"]))
    return {**state, "learner": learner, "progress": progress}


def _adam_by_name(adam: Mapping[Any, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The state of a torch.optim.Adam, by number of the parameter, as `metarl.core.adam` has it."""
    mean, square = (
        {name: adam[number][moment] for number, name in enumerate(names)} for moment in ("exp_avg", "exp_avg_sq")
    )
    return {"count": adam[0]["step"], "mean": mean, "square": square}
