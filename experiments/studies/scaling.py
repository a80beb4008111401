"""Time several processes against one: `torchrun --nproc-per-node 2 experiments/scaling.py half_cheetah_direction`.

Three learners do the same meta-iterations in turn, so that a slow moment of the machine hits all of them:

    divided    all processes, the tasks divided between them, each with its part of the machine's cores
    alone      process 0 with all tasks and as many threads as all processes together, while the others sleep
    share      process 0 with one process's number of tasks and threads, while the others sleep

Speed against one process is alone / divided; weak scaling is share / divided.
"""

import metarl.experiments  # before torch: see there

# isort: split
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.core import distributed
from metarl.core.distributed import ALONE, Processes
from metarl.experiments.benchmark import EXPERIMENTS, BenchmarkSettings, build_learner
from metarl.experiments.runner.configuration import OneLineParser, parse
from metarl.experiments.runner.settings import choose_device, choose_threads
from metarl.experiments.runner.training import one_line_errors


@dataclass(frozen=True)
class Counted(Processes):
    """Processes that note the bytes of every sum.

    Attributes:
        bytes: of each sum so far.
    """

    bytes: list[int] = field(default_factory=list)

    def sum(self, values: Tensor) -> Tensor:
        """As in `Processes`."""
        self.bytes.append(values.numel() * values.element_size())
        return super().sum(values)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print JSON."""
    parser = OneLineParser(__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS, help="what to time")
    with one_line_errors():
        chosen, settings = parse(BenchmarkSettings, sys.argv[1:] if arguments is None else arguments, parser, {})
        processes = distributed.start(choose_device(settings.device))
        figures = measure(chosen.experiment, settings, processes)
        if processes.rank == 0:
            print(json.dumps(figures, indent=1))
        distributed.end()


def measure(name: str, settings: BenchmarkSettings, processes: Processes) -> dict[str, Any]:
    """Seconds of a meta-iteration and its phases by learner; ratios pair by pair, as median, least and most."""
    counted, each = Counted(processes.rank, processes.size), choose_threads(settings.threads)
    divided = replace(build_learner(name, settings), processes=counted, threads=each)
    alone = replace(divided, processes=ALONE, threads=each * processes.size)
    share = replace(divided, processes=ALONE, threads=each, tasks=divided.tasks // processes.size)
    seconds: dict[str, list[float]] = {"divided": [], "alone": [], "share": []}
    phases: list[dict[str, float]] = []
    for repeat in range(settings.repeats + 1):
        counted.bytes.clear()
        for learner, times in zip((divided, alone, share), seconds.values(), strict=True):
            took, figures = _timed(learner, processes)
            if repeat:  # the first builds lanes and fills caches
                times.append(took)
            if repeat and learner is divided:
                phases.append({key: value for key, value in figures.items() if key.startswith("seconds/")})
    same = [torch.equal(divided.theta[key], value) for key, value in alone.theta.items()]
    ratios = {
        "alone/divided": np.divide(seconds["alone"], seconds["divided"]),
        "share/divided": np.divide(seconds["share"], seconds["divided"]),
    }
    return {
        "processes": processes.size,
        "threads_each": each,
        "sizes": f"{divided.tasks} tasks x {divided.episodes} episodes x {divided.distribution.horizon} steps",
        **{key: _summary(values) for key, values in {**seconds, **ratios}.items()},
        **{key: float(np.median([line[key] for line in phases])) for key in phases[0]},
        "parameters": sum(value.numel() for value in divided.theta.values()),
        "sums_per_iteration": len(counted.bytes),
        "bytes_summed_per_iteration": sum(counted.bytes),
        "same_parameters": all(same),
    }


def _timed(learner: metarl.Learner, processes: Processes) -> tuple[float, dict[str, float]]:
    """One meta-iteration, by all processes or by the first alone."""
    if learner.processes is ALONE and processes.rank > 0:
        processes.everyone("waits")
        return 0.0, {}
    torch.set_num_threads(learner.threads)
    start = time.perf_counter()
    figures = learner.step()
    seconds = time.perf_counter() - start
    processes.everyone("has done")
    return seconds, figures


def _summary(values: Any) -> dict[str, float]:
    return {"median": float(np.median(values)), "min": float(min(values)), "max": float(max(values))}


if __name__ == "__main__":
    main()
