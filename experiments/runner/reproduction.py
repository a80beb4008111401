"""Runs of recipes whose results are kept: trained or continued, evaluated, and written into their rows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarl.core.settings import SettingError
from metarl.experiments.runner import results, training
from metarl.experiments.runner.config_file import new_config
from metarl.experiments.runner.experiment import Experiment, find_experiment
from metarl.experiments.runner.flat_settings import flag, flat_settings, from_flat, to_flat
from metarl.experiments.runner.start import BEST, CHECKPOINT, open_run
from metarl.runs import Run, RunError, load_checkpoint, save_checkpoint

RUNS = Path("runs/reproduce")
_OF_NO_RESULT = ("seed", "checkpoint_every", "data", "cache")  # as the settings of the machine
_STATE = ("theta", "constants", "iteration", "env_steps")  # of a learner, without its optimiser


def run_recipe(experiment: Experiment, recipe: str, seed: int, changes: Mapping[str, Any]) -> None:
    """Train a run as far as its recipe or the changes ask, evaluate it, and keep its results.

    What is already done is not done again: a run that was stopped is continued, and recipes that are trained alike
    share a run.

    Args:
        experiment: of the recipe.
        recipe: name of the row.
        seed: of the run.
        changes: settings by flat name that are not the recipe's, such as `iterations` or `threads`.

    Raises:
        SettingError: a change that cannot be, or fewer iterations than are kept.
    """
    asked = experiment.values(recipe, changes)["iterations"]
    trained = experiment.recipes[recipe].trained_as or recipe
    directory = RUNS / experiment.name / results.slug(trained) / f"seed{seed}"
    started = (directory / CHECKPOINT).exists()
    done = load_checkpoint(directory / CHECKPOINT)["learner"]["iteration"] if started else 0
    kept = _kept_iterations(experiment.name, recipe, seed)
    if kept > max(asked, done):
        raise SettingError(
            f"--iterations = {asked}; allowed: at least {kept}, which are kept of {recipe!r}, seed {seed}"
        )
    words = [word for name, value in changes.items() for word in _words(name, value)]
    if not started:
        new = ["--recipe", trained, "--seed", str(seed), "--run-dir", str(directory)]
        training.main(experiment, [*new, *words], evaluated=False)
    elif done < asked:
        more = words if "iterations" in changes else [*words, "--iterations", str(asked)]
        training.main(experiment, ["--resume", str(directory), *more], evaluated=False)
    keep_run(experiment, recipe, directory)


def _words(name: str, value: Any) -> list[str]:
    """A setting on the command line."""
    return [flag(name)] if value is True else [flag(name), str(value)]


def keep_run(experiment: Experiment, recipe: str, directory: Path) -> None:
    """Evaluate a run on test tasks as far as it has come, its last and its best iterate, and write it into its row."""
    _, settings, learner = open_run(directory, changes=_of_evaluation(experiment, recipe))
    learner.close()
    record = _evaluate(experiment, recipe, directory, CHECKPOINT)
    seed = _seed_entry(experiment, settings, Run.open(directory), record)
    if (directory / BEST).exists():
        seed["best"] = results.rounded_evaluation(_evaluate(experiment, recipe, directory, BEST))
    path = results.row_path(experiment.name, recipe)
    with results.held():
        row = results.with_seed(results.load_row(path) if path.exists() else {"seeds": []}, seed)
        results.save_row(path, _described(experiment, {**row, "name": recipe, **_dynamics(record)}))
    first = row["seeds"][0]["seed"]
    if recipe == experiment.recipe_name("") and settings.run.seed == first:
        _save_weights(experiment, recipe, settings, learner, path.with_name(f"{path.stem}_seed{first}.pt"))


def merge_rows(folder: Path) -> dict[str, list[int]]:
    """Take over the seeds of rows in another folder of results, such as of another machine.

    Seeds that are kept here already stay as they are. The folder is read, and its rows are understood, before anything
    is written.

    Args:
        folder: like `results.FOLDER`.

    Returns:
        the new seeds, by the file of their row.

    Raises:
        RunError: the folder holds no rows, or a file of it is not one.
        SettingError: a row is of no experiment or recipe that there is, or has other dynamics than the one here.
    """
    found = [row for rows in results.load_rows(folder).values() for row in rows.values()]
    if not found:
        raise RunError(f"{folder} holds no rows of results; allowed: a folder of EXPERIMENT/ROW.json")
    merged: dict[Path, dict[str, Any]] = {}
    taken: dict[str, list[int]] = {}
    with results.held():
        for other in found:
            experiment = find_experiment(other["experiment"])
            path = results.row_path(experiment.name, experiment.recipe_name(other["name"]))
            row = results.load_row(path) if path.exists() else {**other, "settings": {}, "seeds": []}
            if _dynamics(row) != _dynamics(other):
                raise SettingError(f"{other['name']} has other dynamics in {folder}; allowed: {row['dynamics']}")
            kept = {of["seed"] for of in row["seeds"]}
            new = [seed for seed in other["seeds"] if seed["seed"] not in kept]
            for seed in new:
                row = results.with_seed(row, {**seed, "settings": {**other["settings"], **seed.get("settings", {})}})
            if new:
                merged[path] = _described(experiment, row)
                taken[str(path.relative_to(results.FOLDER))] = [seed["seed"] for seed in new]
        for path, row in merged.items():
            results.save_row(path, row)
    return taken


def _dynamics(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"dynamics": record["dynamics"]} if "dynamics" in record else {}


def _described(experiment: Experiment, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what its file begins with, the command that makes its seeds among it."""
    iterations = {of["seed"]: of["last"]["iterations"] for of in row["seeds"]}
    name, usual = row["name"], experiment.values(row["name"])["iterations"]
    return {
        "format": results.FORMAT,
        "experiment": experiment.name,
        "name": name,
        "command": results.command(experiment.name, name, iterations, usual),
        **_dynamics(row),
        "settings": row["settings"],
        "seeds": row["seeds"],
    }


def _seed_entry(experiment: Experiment, settings: Any, run: Run, record: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a seed in its row, but for the best iterate.

    Args:
        experiment: of the run.
        settings: of the run.
        run: its directory.
        record: the evaluation of the last iterate.
    """
    lines = run.metrics()
    curve = results.curve_of(lines)
    entry: dict[str, Any] = {
        "seed": settings.run.seed,
        "commit": run.config["commit"],
        "machine": results.machine(),
        "seconds": round(_seconds(lines)),
        "settings": results_settings(experiment, settings),
    }
    if "resumed" in run.config:
        entry["resumed"] = [{"iteration": of["iteration"], "commit": of["commit"]} for of in run.config["resumed"]]
    if "tasks" in record:
        entry["tasks"] = results.rounded_tasks(record["tasks"])
    entry["last"] = results.rounded_evaluation(record)
    if curve:
        entry["curve"] = results.thin(curve)
    if validation := results.validation_of(lines):
        entry["validation"] = validation
    if "env_steps" in curve:
        others = results.load_rows().get(experiment.name, {}).values()
        window = results.training_window(others, int(curve["env_steps"][-1]))
        if (mean := results.training_return(curve, window)) is not None:
            entry["training"] = {"env_steps": window, "return/step_1": mean}
    return entry


def results_settings(experiment: Experiment, settings: Any) -> dict[str, Any]:
    """The settings that a row tells, by flat name: all with an effect but those of the machine, and the seed."""
    known = flat_settings(experiment.settings)
    values = {n: v for n, v in to_flat(settings).items() if known[n].part != "machine" and n not in _OF_NO_RESULT}
    return json.loads(json.dumps(values))  # tuples become lists, as in the files


def _kept_iterations(experiment: str, recipe: str, seed: int) -> int:
    path = results.row_path(experiment, recipe)
    seeds = results.load_row(path)["seeds"] if path.exists() else []
    return next((of["last"]["iterations"] for of in seeds if of["seed"] == seed), 0)


def _evaluate(experiment: Experiment, recipe: str, directory: Path, checkpoint: str) -> dict[str, Any]:
    """Evaluate a checkpoint of a run on test tasks: the content of an evaluation's file."""
    record: dict[str, Any] = {}
    own = _of_evaluation(experiment, recipe)
    for prefix, changes in experiment.recipes[recipe].evaluations.items():
        _, settings, learner = open_run(directory, checkpoint, {**own, **changes})
        metrics = experiment.evaluate(settings, learner, "test").to_json()
        record = {**experiment.record(settings, learner), **record}  # the first one's shots
        record |= {name if name == "tasks" else prefix + name: value for name, value in metrics.items()}
        learner.close()
    return record


def _of_evaluation(experiment: Experiment, recipe: str) -> dict[str, Any]:
    """The settings in which a recipe differs from the one that its runs are trained with."""
    trained = experiment.recipes[recipe].trained_as or recipe
    before = experiment.values(trained)
    return {name: value for name, value in experiment.values(recipe).items() if value != before.get(name)}


def _seconds(lines: Sequence[Mapping[str, float]]) -> float:
    """The time that training took, from its metrics."""
    seconds, before = 0.0, 0
    for line in lines:
        if "iterations_per_second" in line:
            seconds += (line["iteration"] - before) / line["iterations_per_second"]
        seconds += sum(value for name, value in line.items() if name.startswith("seconds/"))
        before = int(line["iteration"])
    return seconds


def _save_weights(experiment: Experiment, recipe: str, settings: Any, learner: Any, path: Path) -> None:
    """Save the parameters of a learner, without its optimiser and what belongs to this machine."""
    state = {name: value for name, value in learner.state_dict().items() if name in _STATE}
    values = results_settings(experiment, settings) | {"seed": settings.run.seed}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    config = new_config(experiment, recipe, from_flat(experiment.settings, values))
    save_checkpoint(path, {"learner": state, "config": config})
