"""The measurements behind `docs/performance.md`: what is timed, where it is kept, and the tables made of it."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from metarl.experiments.runner import results
from metarl.experiments.runner.tables import markdown
from metarl.runs import write_atomically

_MLP = "--hidden-sizes 64 64 --activation tanh"
_DIRECTION = "half_cheetah_direction --recipe paper"
REINFORCEMENT = {  # words of `experiments/benchmark.py`
    "2D navigation": f"navigation_2d --recipe paper {_MLP}",
    "half-cheetah direction, gymnasium": f"{_DIRECTION} --dynamics gymnasium --horizon 100 {_MLP}",
    "half-cheetah direction, paper": _DIRECTION,
    "half-cheetah direction, paper, exact products": f"{_DIRECTION} --hvp-sample-fraction 1 --repeats 3",
    "half-cheetah direction, recommended": "half_cheetah_direction",
    "ant direction, paper": "ant_direction --recipe paper --num-tasks 20 --repeats 3",
}
FEW_SHOT = {"Omniglot": "omniglot --repeats 3", "sine": "sine --threads 1 --repeats 60"}
CASES = {**REINFORCEMENT, **FEW_SHOT}
_PLAIN = ("task_by_task_seconds", "plain_seconds")  # the same computed as most libraries do

Measured = Mapping[str, Mapping[str, Any]]  # by case, what `experiments/benchmark.py --json` prints


def measure_all(script: Path, report: Callable[[str], None] = print) -> Path:
    """Time all cases, each in a process of its own, and keep what was measured in `performance.json`.

    Args:
        script: `experiments/benchmark.py`.
        report: is told of each case before it begins.

    Returns:
        the file.

    Raises:
        subprocess.CalledProcessError: a case failed; what is kept stays as it was.
    """
    cases = {}
    for name, words in CASES.items():
        report(f"{name}: benchmark.py {words}")
        command = [sys.executable, str(script), *words.split(), "--json"]
        cases[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    kept = {"date": date.today().isoformat(), "cases": cases}
    path = results.FOLDER / "performance.json"
    write_atomically(path, (json.dumps(kept, indent=1) + "\n").encode())
    return path


def performance_tables() -> dict[str, str]:
    """The tables of what is kept, by the name that their markers in the page have; none before a measurement."""
    path = results.FOLDER / "performance.json"
    if not path.exists():
        return {}
    kept = json.loads(path.read_text())
    reinforcement = {name: kept["cases"][name] for name in REINFORCEMENT}
    return {
        "performance": iteration_table(reinforcement),
        "rollout performance": rollout_table(reinforcement),
        "few-shot performance": few_shot_table({name: kept["cases"][name] for name in FEW_SHOT}),
        "performance commands": markdown(
            ["", "sizes", "command"],
            [[name, kept["cases"][name]["sizes"], f"`benchmark.py {words}`"] for name, words in CASES.items()],
        ),
        "performance machine": f"Measured on {kept['date']}: {kept['cases'][next(iter(CASES))]['machine']}.",
    }


def iteration_table(cases: Measured) -> str:
    """Seconds of a meta-iteration, of its adaptation and of its update, and the shares of what is possible."""
    columns = ["", "meta-iteration, s", "share", "adaptation, s", "update, s", "share", "matrix product, GFLOP/s"]
    lines = []
    for name, found in cases.items():
        whole, update = found["meta_iteration_seconds"], found["update_seconds"]
        timed = [_spread(whole), _share(whole), _spread(found["adapt_seconds"]), _spread(update), _share(update)]
        lines.append([name, *timed, f"{found['matrix_product_flops']['median'] / 1e9:.0f}"])
    return markdown(columns, lines)


def rollout_table(cases: Measured) -> str:
    """Environment steps per second: of the physics alone, and of what comes on top of it."""
    parts = {
        "rollout": "with the policy",
        "batch": "our batch",
        "physics_open_loop": "physics alone",
        "sync_vector_env": "gymnasium's SyncVectorEnv, 16 environments",
    }
    lines = []
    for name, found in cases.items():
        values = [found.get(f"{part}_steps_per_s") for part in parts]
        lines.append([name, *("" if of is None else _spread(of, _rounded) for of in values)])
    return markdown(["", *parts.values()], lines)


def few_shot_table(cases: Measured) -> str:
    """Seconds of a meta-iteration, beside those of the usual way to compute it, and the shares of what is possible."""
    columns = ["", "ours, s", "share", "the usual way, s", "the usual way / ours"]
    lines = []
    for name, found in cases.items():
        for part in [part for part in found if part.endswith("/seconds")]:
            method = part.removesuffix("/seconds")
            own = found[part]
            usual = next((found[key] for end in _PLAIN if (key := f"{method}/{end}") in found), None)
            ratio = "" if usual is None else f"{usual['median'] / own['median']:.2f}"
            words = method.replace("_steps", " inner steps").replace("1 inner steps", "1 inner step")
            cells = [_spread(own), _share(own), "" if usual is None else _spread(usual), ratio]
            lines.append([f"{name}, {words}", *cells])
    return markdown(columns, lines)


def _share(values: Mapping[str, float]) -> str:
    return f"{values['share_of_floor']:.2f}"


def _rounded(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.0f}"


def _spread(values: Mapping[str, float], shown: Callable[[float], str] = lambda value: f"{value:.2g}") -> str:
    """The median, with least and most in brackets."""
    of: Sequence[str] = [shown(values[key]) for key in ("median", "min", "max")]
    return f"{of[0]} ({of[1]} to {of[2]})"
