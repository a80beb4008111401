"""Time an experiment's parts: `python experiments/benchmark.py navigation_2d --hidden-sizes 64 64 [--json]`.

The flags of the experiment's own script choose what is timed. Parts are measured in turn, several times over, so that a
slow moment of the machine hits all of them; medians are printed with their spread, and how near they are to what the
machine can do: the physics alone, and the speed of a large matrix product. Run it with nothing else running.
`python experiments/benchmark.py all` measures several experiments in turn and keeps the results.
"""

import metarl.experiments  # noqa: F401  # before torch: see there

# isort: split
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarl.core.settings import SettingError, nearest
from metarl.experiments.runner.benchmarks import (
    few_shot_parts,
    learner_parts,
    machine,
    simulator_parts,
    timed,
    with_floors,
)
from metarl.experiments.runner.command_line import OneLineParser, read
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.performance import measure_all
from metarl.experiments.runner.results import REINFORCEMENT
from metarl.experiments.runner.training import one_line_errors

FEW_SHOT = ("sine", "omniglot")
ALL = "all"  # the cases of `metarl.experiments.runner.performance`
KNOWN = (*REINFORCEMENT, *FEW_SHOT, ALL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, as a table or as JSON."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = OneLineParser("Time the parts of an experiment's meta-iteration, and of its simulator.")
    parser.usage = "%(prog)s EXPERIMENT [--repeats INT] [--json] [flags of the experiment's script]"
    parser.add_argument("experiment", metavar="EXPERIMENT", help=", ".join(KNOWN))
    parser.add_argument("--repeats", type=int, default=7, metavar="INT", help="measurements of each part (default 7)")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    chosen, flags = parser.parse_known_args(words)
    with one_line_errors():
        if chosen.experiment not in KNOWN:
            hint = nearest(chosen.experiment, KNOWN)
            raise SettingError(f"EXPERIMENT = {chosen.experiment!r}; allowed: {', '.join(KNOWN)}{hint}")
        if chosen.experiment == ALL:
            if further := [word for word in words if word != ALL]:
                raise SettingError(f"{further[0]} has no effect with {ALL}; allowed: {ALL} alone")
            print(f"kept in {measure_all(Path(__file__))}")
            return
        if chosen.repeats < 1:
            raise SettingError(f"--repeats = {chosen.repeats}; allowed: at least 1")
        measured = measure(chosen.experiment, flags, chosen.repeats)
    if chosen.json:
        print(json.dumps(measured, indent=1))
        return
    for name, value in measured.items():
        print(f"{name:<36} {_shown(value)}")


def measure(name: str, flags: Sequence[str], repeats: int) -> dict[str, Any]:
    """Time all parts of an experiment with these flags; by name, each with median, min and max, and the machine.

    Parts whose least time is known have `floor` as well: their operations at the speed of a large matrix product, and
    their environment steps at that of the physics alone; and `share_of_floor`, that time over the median.
    """
    experiment = find_experiment(name)
    request = read(experiment, flags)
    settings = experiment.configure(request.recipe, **request.given)
    if name in FEW_SHOT:
        parts, sizes = few_shot_parts(name, settings)
        found = timed(parts, repeats, warm_ups=12)  # of which the tenth records
        return {**with_floors(found, parts, 0), "sizes": sizes, "machine": machine()}
    with experiment.build(settings) as learner:
        parts = {**learner_parts(learner), **simulator_parts(learner)}
        before = learner.env_steps
        learner.step()
        env_steps = learner.env_steps - before
        found = with_floors(timed(parts, repeats), parts, env_steps)
    sampling, horizon = learner.sampling, learner.task_distribution.horizon
    sizes = f"{sampling.num_tasks} tasks x {sampling.episodes_per_task} episodes x {horizon} steps"
    return {**found, "sizes": sizes, "machine": machine()}


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        measured = f"{value['median']:>12,.4g}   ({value['min']:,.4g} to {value['max']:,.4g})"
        return measured + (f", {value['share_of_floor']:.2f} of what is possible" if "floor" in value else "")
    return f"{value:>12,.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
