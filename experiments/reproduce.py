"""Reproduce results: `python experiments/reproduce.py navigation_2d --recipes maml --seeds 0 1 2`.

Without arguments it lists what there is: every environment and data set, its rows, and the command that makes each.
With a name it trains runs of recipes under runs/reproduce (those that were stopped are continued), evaluates them on
test tasks and writes what matters of them into experiments/results. `--merge DIR` takes over the seeds of rows that
another machine has in its experiments/results. `--report` only makes the digest, tables and pictures again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarl.core.settings import SettingError
from metarl.experiments.runner import results
from metarl.experiments.runner.command_line import OneLineParser
from metarl.experiments.runner.digest import digest
from metarl.experiments.runner.experiment import Experiment, find_experiment
from metarl.experiments.runner.flat_settings import flat_settings
from metarl.experiments.runner.reproduction import merge_rows, run_recipe
from metarl.experiments.runner.tables import headline
from metarl.experiments.runner.training import one_line_errors

_PASSED_ON: dict[str, dict[str, Any]] = {  # settings, and how they are read
    "iterations": {
        "type": int,
        "metavar": "INT",
        "help": "continue runs up to this (default: the recipe's); what has come as far stays as it is",
    },
    "threads": {"type": int, "metavar": "INT", "help": "of physics and mathematics (default: all cores)"},
    "data": {"metavar": "DIR", "help": "folder of the images"},
    "cache": {"metavar": "DIR", "help": "folder of the prepared images"},
    "compile": {"action": "store_true", "default": None, "help": "compile the meta-gradient of few-shot methods"},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """List, or train, evaluate, keep and report."""
    with one_line_errors():
        chosen = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
        given = [name for name in ("recipes", "seeds", *_PASSED_ON) if getattr(chosen, name) is not None]
        if chosen.name is None and given:
            raise SettingError(f"--{given[0]} without NAME has no effect; allowed: a NAME, see --help")
        tasks = [words for words in (chosen.name, chosen.merge and "--merge", chosen.report and "--report") if words]
        if not tasks:
            print(listing())
            return
        if len(tasks) > 1:
            raise SettingError(f"{tasks[1]} with {tasks[0]}, which ends with a report; allowed: one of the two")
        if chosen.name is not None:
            _reproduce(chosen)
        elif chosen.merge is not None:
            for row, seeds in merge_rows(chosen.merge).items():
                print(f"{row}: seeds {' '.join(map(str, seeds))}")
        elif not results.load_rows():
            raise SettingError(f"--report, but {results.FOLDER} holds no results; allowed: after a run of a NAME")
        from metarl.experiments.runner.report import Report  # which imports matplotlib

        with results.held():
            Report().write()


def listing() -> str:
    """All rows of all experiments: the command that makes each, its seeds, and what it gave."""
    summary, lines = digest(results.load_rows()), []
    for name in results.EXPERIMENTS:
        experiment, entries = find_experiment(name), summary.get(name, {})
        lines.append(name)
        for row in dict.fromkeys([*experiment.recipes, *entries]):
            entry = entries.get(row)
            words = entry["command"] if entry else results.command(name, row, {0: 0}, 0)
            lines += [f"  {row}: {headline(entry) if entry else 'no results'}", f"    {words}"]
    return "\n".join(lines)


def _reproduce(chosen: argparse.Namespace) -> None:
    """Run what the command line asks for."""
    experiment = find_experiment(chosen.name)
    recipes = [experiment.recipe_name(name) for name in chosen.recipes or _usual(experiment)]
    seeds = chosen.seeds or (0, 1, 2)
    if min(seeds) < 0:
        raise SettingError(f"--seeds = {min(seeds)}; allowed: at least 0")
    changes = {name: value for name in _PASSED_ON if (value := getattr(chosen, name)) is not None}
    if useless := [name for name in changes if name not in flat_settings(experiment.settings)]:
        raise SettingError(f"--{useless[0]} means nothing in {experiment.name}; allowed: without it")
    for recipe in recipes:
        for seed in seeds:
            run_recipe(experiment, recipe, seed, changes)


def _usual(experiment: Experiment) -> list[str]:
    """The recipes with published results, of which there may be none; then all."""
    return [name for name, recipe in experiment.recipes.items() if recipe.published] or list(experiment.recipes)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser("Train recipes, evaluate them and keep the results; without arguments, list what there is.")
    parser.add_argument(
        "name", nargs="?", choices=results.EXPERIMENTS, metavar="NAME", help=", ".join(results.EXPERIMENTS)
    )
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="rows (default: those with published results)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="INT", help="(default 0 1 2)")
    parser.add_argument("--merge", type=Path, metavar="DIR", help="take over seeds that another folder of results has")
    parser.add_argument("--report", action="store_true", help="only the digest, tables and pictures of what is kept")
    for name, how in _PASSED_ON.items():
        parser.add_argument(f"--{name}", **how)
    return parser


if __name__ == "__main__":
    main()
