"""The report on all results that are kept: the digest `summary.json`, tables in `docs/results.md`, and pictures."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metarl.experiments.runner import result_plots, results, tables
from metarl.experiments.runner.arrival import Arrival, arrival
from metarl.experiments.runner.digest import digest
from metarl.experiments.runner.experiment import Experiment, find_experiment
from metarl.experiments.runner.method_table import FAMILIES, INSTANCES, PUBLISHED_INSTANCES, MethodEntry
from metarl.experiments.runner.performance import performance_tables
from metarl.experiments.runner.result_plots import MOST_LINES, Line
from metarl.experiments.runner.results import EXPERIMENTS, OTHER_TASKS, REINFORCEMENT, SUPERVISED
from metarl.runs import write_atomically

ROOT = Path(__file__).parents[2]
PAGES = (
    "docs/results.md",
    "docs/guides/few_shot_methods.md",
    "docs/guides/rl2.md",
    "docs/performance.md",
    "README.md",
)  # in which markers name tables

Entries = dict[str, dict[str, Any]]  # of an experiment, by row


class Report:
    """All results that are kept, and what is made of them.

    Attributes:
        rows: by experiment and name, in the order of the recipes.
        summary: the digest of the rows.
    """

    def __init__(self) -> None:
        kept = results.load_rows()
        self._experiments = {name: find_experiment(name) for name in EXPERIMENTS if name in kept}
        self.rows = {name: _ordered(kept[name], of) for name, of in self._experiments.items()}
        self.summary = digest(self.rows)
        # steps of RL^2 are earlier episodes, so its rows have a table of their own
        self._by_gradient_steps = {
            of: {name: entry for name, entry in entries.items() if tables.TRIAL not in entry}
            for of, entries in self.summary.items()
        }

    def write(self) -> None:
        """Write `summary.json`, the tables in the page of results, and the pictures."""
        write_atomically(results.FOLDER / "summary.json", (json.dumps(self.summary, indent=1) + "\n").encode())
        made = self.tables()
        for page in (ROOT / name for name in PAGES):
            if page.exists():
                write_atomically(page, with_tables(page.read_text(), made).encode())
        for path, figure in self.pictures():
            figure.savefig(results.FOLDER / path, dpi=100)

    def tables(self) -> dict[str, str]:
        """All tables in Markdown, by the name that their markers in the page of results have."""
        leading = [(of, self.leading(of), self._published(of, "maml")) for of in self._reinforcement]
        found = {
            "overview": tables.overview([(of, row, self.summary[of][row], known) for of, row, known in leading]),
            "arrivals": tables.arrivals(self._arrivals()),
        }
        for of in self._reinforcement:
            known = {name: self._published(of, name) for name in self.summary[of]}
            for group, entries in self._groups(of).items():
                found[f"{of} {group}"] = tables.returns(entries, known, group == "comparison")
        for of, (metric, steps) in SUPERVISED.items():
            if of in self.summary:
                known = {name: self._published(of, name) for name in self.summary[of]}
                for table, entries in self._by_tasks(of).items():
                    judged = metric if table == of else OTHER_TASKS[of][1]
                    found[table] = tables.supervised(entries, judged, steps, known)
        found["trials"] = tables.trials([(of, *row) for of in self.summary for row in self._trials(of)])
        found["few-shot methods"] = tables.few_shot_methods(list(self._methods()))
        found["instances"] = tables.instances(self.summary.get("omniglot", {}), INSTANCES, PUBLISHED_INSTANCES)
        return found | performance_tables()

    def pictures(self) -> Iterator[tuple[str, Figure]]:
        """All pictures, each with its path in the folder of results."""
        yield "arrivals.png", result_plots.arrivals(self._arrivals())
        for of in self._reinforcement:
            title = f"{of.replace('_', ' ')}: mean and standard error over seeds"
            yield f"{of}/adaptation.png", result_plots.adaptation(title, self._adaptation_lines(of))
            if curves := self._training_curves(of):
                yield f"{of}/training.png", result_plots.training(title, curves)
        if "sine" in self.summary:
            yield (
                "sine/adaptation.png",
                result_plots.errors_by_shots("sine: mean over seeds", _error_panels(self._by_tasks("sine")["sine"])),
            )

        if lines := instance_lines(self.summary.get("omniglot", {})):
            yield "omniglot/instances.png", result_plots.by_instance("omniglot: mean over seeds", lines)

    def leading(self, experiment: str) -> str:
        """The row that stands first: that of the default recipe if it is kept, else the best one."""
        default = self._experiments[experiment].recipe_name("")
        entries = self._by_gradient_steps[experiment]
        return default if default in entries else tables.best_row(entries) or next(iter(entries))

    def _arrivals(self) -> list[tuple[str, str, list[Arrival | None]]]:
        """When the leading row of each environment exceeded the published return, and the best other row if it did."""
        found = []
        for of in self._reinforcement:
            if published := self._published(of, "maml"):
                leading = self.leading(of)
                others = dict(self._by_gradient_steps[of])
                del others[leading]
                for name in filter(None, (leading, tables.best_row(others))):
                    seeds = [arrival(seed, published[1]) for seed in self.rows[of][name]["seeds"]]
                    if name == leading or any(seeds):
                        found.append((of, name, seeds))
        return found

    def _methods(self) -> Iterator[tuple[str, MethodEntry, Mapping[str, Any] | None, str, Sequence[float]]]:
        """Every few-shot method with its family, the entry of its row, the metric there, and what was published."""
        for family, methods in FAMILIES.items():
            for method in methods:
                experiment: Any = find_experiment(method.script)
                if method.recipe and method.recipe not in experiment.recipes:
                    continue
                settings = experiment.configure(method.recipe)
                metric = (
                    method.metric or f"{experiment.criterion_of(settings).name}/step_{experiment.judged_step(settings)}"
                )
                published = method.published or (experiment.recipes[method.recipe].published if method.recipe else ())
                entry = self.summary.get(method.script, {}).get(method.recipe)
                yield family, method, entry, metric, published

    def _trials(self, experiment: str) -> Iterator[tuple[str, dict[str, Any], Sequence[float]]]:
        """The rows of RL^2 with their entries and what was published of them."""
        for name, entry in self.summary[experiment].items():
            if name not in self._by_gradient_steps[experiment]:
                yield name, entry, self._published(experiment, name)

    @property
    def _reinforcement(self) -> list[str]:
        return [name for name in REINFORCEMENT if self._by_gradient_steps.get(name)]

    def _published(self, experiment: str, name: str) -> Sequence[float]:
        recipes = self._experiments[experiment].recipes
        return recipes[name].published if name in recipes else ()

    def _groups(self, experiment: str) -> dict[str, Entries]:
        """The rows of each table: those of the paper's figure with the leading one, and the others beside `maml`."""
        entries = self._by_gradient_steps[experiment]
        paper = [name for name in entries if self._published(experiment, name)]
        others = [name for name in entries if name not in paper]
        leading = self.leading(experiment)
        groups = {"paper": dict.fromkeys([*paper, leading])}
        if others:
            groups["comparison"] = dict.fromkeys(["maml", *others])
        return {group: {name: entries[name] for name in names if name in entries} for group, names in groups.items()}

    def _by_tasks(self, experiment: str) -> dict[str, Entries]:
        """The rows of a data set by the name of their table: those on other curves than the paper's have their own."""
        recipes, setting = self._experiments[experiment].recipes, OTHER_TASKS.get(experiment, ("",))[0]
        found: dict[str, Entries] = {name: {} for name in (experiment, *[f"{experiment} {setting}"] * bool(setting))}
        for name, entry in self.summary[experiment].items():
            other = name in recipes and setting in recipes[name].settings
            found[f"{experiment} {setting}" if other else experiment][name] = entry
        return found

    def _adaptation_lines(self, experiment: str) -> list[Line]:
        entries, leading = self._by_gradient_steps[experiment], self.leading(experiment)
        lines = []
        for name in dict.fromkeys([leading, "maml", "pretrained", "random", "oracle"]):
            if name in entries:
                values = [entries[name][key] for key in sorted(entries[name]) if key.startswith("return/step_")]
                errors = [value["standard_error"] for value in values]
                means = [value["mean"] for value in values]
                lines.append(Line(_label(name, entries[name]), means, None if None in errors else errors))
        if published := self._published(experiment, "maml"):
            lines.insert(2, Line("maml, published", published, published=True))
        return lines[:MOST_LINES]

    def _training_curves(self, experiment: str) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
        """The curves of `maml`, of the leading row and of those that returned most in training."""
        curves = {}
        for name in self._by_gradient_steps[experiment]:
            row = self.rows[experiment][name]
            if seeds := [curve for seed in row["seeds"] if (curve := results.returns_by_steps(seed)) is not None]:
                curves[name] = seeds
        last = {name: np.mean([returns[-5:].mean() for _, returns in seeds]) for name, seeds in curves.items()}
        best = sorted(last, key=lambda name: -last[name])
        chosen = list(dict.fromkeys([self.leading(experiment), "maml", *best]))
        return {_label(name, self.summary[experiment][name]): curves[name] for name in chosen if name in curves
                and name in chosen[:MOST_LINES]}  # fmt: skip


def with_tables(page: str, made: Mapping[str, str]) -> str:
    """Replace what stands between the markers of each table, `<!-- table: NAME -->` and `<!-- end -->`."""

    def replaced(match: re.Match[str]) -> str:
        return f"{match[1]}\n{made.get(match[2], '')}\n{match[3]}"

    return re.sub(r"(<!-- table: (.*?) -->\n).*?(<!-- end -->)", replaced, page, flags=re.DOTALL)


def instance_lines(entries: Mapping[str, Mapping[str, Any]]) -> list[Line]:
    """The accuracy by instance of every row that has it."""
    lines = []
    for name, entry in entries.items():
        values = [entry[key] for number in range(1, len(entry) + 1) if (key := f"accuracy/instance_{number}") in entry]
        if values:
            errors = [value["standard_error"] for value in values]
            means = [value["mean"] for value in values]
            lines.append(Line(_label(name, entry), means, None if None in errors else errors))
    return lines


def _ordered(rows: Mapping[str, dict[str, Any]], experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Rows in the order of the experiment's recipes, and then those that have none."""
    return {name: rows[name] for name in dict.fromkeys([*experiment.recipes, *rows]) if name in rows}


def _label(name: str, entry: Mapping[str, Any]) -> str:
    count = len(entry["seeds"])
    return f"{name} ({count} seed{'s' * (count > 1)})"


def _error_panels(entries: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Mean squared errors after each gradient step, by heading and row; NaN where a task diverged."""
    panels: dict[str, dict[str, list[float]]] = {}
    for prefix, shots in (("", 5), ("shots_10/", 10), ("shots_20/", 20)):
        for name, entry in entries.items():
            values = [entry[key]["mean"] for step in range(11) if (key := f"{prefix}mse/step_{step}") in entry]
            panels.setdefault(f"K = {shots}", {})[name] = [np.nan if value is None else value for value in values]
    return panels
