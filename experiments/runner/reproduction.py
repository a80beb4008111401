"""What the reproductions of the paper's figures and of its tables share: command line, training, files of results."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from metarl.experiments.runner import training
from metarl.experiments.runner.configuration import OneLineParser, SettingError, parse
from metarl.experiments.runner.experiment import Experiment
from metarl.experiments.runner.plots import save_json
from metarl.runs import load_checkpoint

RESULTS = Path(__file__).parents[1] / "results"
RUNS = Path("runs/reproduce")


def choose(
    parser: OneLineParser,
    known: Mapping[str, Collection[str]],
    usual: Mapping[str, Collection[str]],
    arguments: Sequence[str] | None,
    more: Sequence[str] = (),
) -> argparse.Namespace:
    """Read figure, methods and seeds, or that a report is wanted, from the command line; SettingError for the unknown.

    Args:
        parser: the script's.
        known: names of each figure's methods.
        usual: those to run where none is named.
        arguments: None for those of the process.
        more: names of flags that the script passes on to its runs besides `iterations` and `threads`.

    Returns:
        what was chosen, without a figure no methods; its `flags` are those to pass on.
    """
    parser.add_argument("figure", nargs="?", choices=tuple(known), help="the experiment of the figure or table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="INT", help="(default 0 1 2)")
    names = ", ".join(repr(name) for name in dict.fromkeys(name for methods in known.values() for name in methods))
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help=f"of the figure (default: the paper's): those it has of {names}"
    )
    parser.add_argument("--report", action="store_true", help="only tables and figures of all that has been kept")
    parser.add_argument(
        "--iterations",
        type=int,
        metavar="INT",
        help="continue runs up to this (default: the method's); those that have come as far are evaluated and kept",
    )
    parser.add_argument("--threads", type=int, metavar="INT", help="passed on to the runs")
    for name in more:
        parser.add_argument(f"--{name}", metavar="PATH", help="passed on to the runs")
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    passed = {name: getattr(chosen, name) for name in ("iterations", "threads", *more)}
    chosen.flags = [word for name, value in passed.items() if value is not None for word in (f"--{name}", str(value))]
    if (chosen.figure is not None) == chosen.report:
        wrong = "a figure's runs end with a report" if chosen.report else "nothing to do"
        raise SettingError(f"{wrong}; allowed: either a figure ({', '.join(known)}) or --report")
    if chosen.report:
        chosen.methods = []
        return chosen
    chosen.methods = chosen.methods or list(usual[chosen.figure])
    if min(chosen.seeds) < 0:
        raise SettingError(f"--seeds = {min(chosen.seeds)}; allowed: at least 0")
    if unknown := [name for name in chosen.methods if name not in known[chosen.figure]]:
        raise SettingError(f"--methods = {unknown[0]!r}; allowed: {', '.join(map(repr, known[chosen.figure]))}")
    return chosen


def train_run(
    experiment: Experiment,
    directory: Path,
    kept: Path,
    seed: int,
    flags: Sequence[str],
    trained: bool = True,
    then: Sequence[tuple[int, str]] = (),
) -> None:
    """Start a run, or continue it up to the iterations that its flags or else its script ask for.

    Args:
        experiment: the script.
        directory: of the run.
        kept: where its results go; SettingError if there are those of more iterations already.
        seed: of the run.
        flags: of the script.
        trained: False to leave the run at its first checkpoint.
        then: iterations, in order, each with more flags for those after it.
    """
    _, asked = parse(experiment.settings, flags, OneLineParser(""), {})
    done = {place: _iterations(place) for place in (directory, kept)}
    if trained and done[kept] > max(asked.iterations, done[directory]):
        raise SettingError(f"{kept} holds {done[kept]} iterations; allowed: --iterations {done[kept]} or more")
    new = ["--seed", str(seed), "--run-dir", str(directory), *flags]
    if not trained:
        if not (directory / "checkpoint.pt").exists():
            training.prepare(experiment, new)
        return
    words, ends = list(flags), [min(after, asked.iterations) for after, _ in then]
    for more, until in zip(["", *(more for _, more in then)], [*ends, asked.iterations], strict=True):
        words += more.split()
        begun = (directory / "checkpoint.pt").exists()
        if not begun or _iterations(directory) < until:
            start = ["--resume", str(directory), *words] if begun else new
            training.main(experiment, [*start, "--iterations", str(until)], evaluated=False)


def _iterations(folder: Path) -> int:
    """How many a run or its results have come to."""
    path = folder / "checkpoint.pt"
    return load_checkpoint(path)["learner"]["iteration"] if path.exists() else 0


def keep_curve(kept: Path, lines: Sequence[Mapping[str, Any]], keys: Sequence[str], seconds: Sequence[float]) -> None:
    """Write the curves of a run; where it continued what is kept, after that one's values from before.

    Args:
        kept: the folder.
        lines: the metrics of the run, none if there is nothing new; then what is kept stays.
        keys: of what to keep; without `iteration` there is a line for each one.
        seconds: that each line's iterations took.
    """
    path = kept / "curve.json"
    if not lines and path.exists():
        return
    curve, took = {key: [round(line[key], 4) for line in lines] for key in keys}, sum(seconds)
    earlier = json.loads(path.read_text()) if path.exists() else {}
    if values := [earlier[key] for key in keys if key in earlier]:
        iterations = earlier.get("iteration", range(1, len(values[0]) + 1))
        if before := sum(iteration < lines[0]["iteration"] for iteration in iterations):
            took += earlier["seconds"] * before / len(iterations)
            curve = {key: earlier[key][:before] + values for key, values in curve.items() if key in earlier}
    save_json(path, {**curve, "seconds": round(took), "machine": f"{platform.machine()}, {os.cpu_count()} cores"})


def folders(figure: str, name: str, seed: int) -> tuple[Path, Path]:
    """Where a method's run of a seed is, and where its results are kept."""
    run, kept = (base / figure / slug(name) / f"seed{seed}" for base in (RUNS, RESULTS))
    return run, kept


def seed_folders(figure: str, name: str) -> list[Path]:
    """The folders of a method's results, one per seed; `curve.json` is written last."""
    return sorted(curve.parent for curve in (RESULTS / figure / slug(name)).glob("seed*/curve.json"))


def keep_summary(summary: dict[str, dict[str, Any]]) -> None:
    """Replace the entries of these figures in the summary of all results, and keep the others."""
    path = RESULTS / "summary.json"
    save_json(path, {**(json.loads(path.read_text()) if path.exists() else {}), **summary})


def command(script: str, figure: str, name: str, seeds: Sequence[int], iterations: Sequence[int]) -> str:
    """What makes a method's results: a command for all seeds that have come equally far; no iterations if untrained."""
    words = f"python experiments/{script}.py {figure} --methods {name!r} --seeds"
    if not iterations:
        return f"{words} {' '.join(map(str, seeds))}"
    parts: dict[int, list[str]] = {}
    for seed, count in zip(seeds, iterations, strict=True):
        parts.setdefault(count, []).append(str(seed))
    return " && ".join(f"{words} {' '.join(of)} --iterations {count}" for count, of in parts.items())


def commits(config: Mapping[str, Any]) -> str | None:
    """The versions that made a run: of its start, and those that continued it after an iteration."""
    later = [f"{part['commit']} after {part['iteration']}" for part in config.get("resumed", [])]
    return ", ".join([str(config["commit"]), *later]) if later else config["commit"]


def common(values: Sequence[Any]) -> Any:
    """The value that all seeds share, or a list of each one's."""
    return values[0] if all(value == values[0] for value in values) else list(values)


def shown(value: Any) -> str:
    """A number, or the range of several."""
    values = value if isinstance(value, list) else [value]
    return " to ".join(f"{of:,}" for of in sorted({min(values), max(values)}))


def slug(name: str) -> str:
    """The name of a method's folder."""
    return name.replace(", ", "_").replace(" ", "_")
