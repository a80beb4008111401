"""Time several processes: `torchrun --nproc-per-node 2 experiments/studies/scaling.py half_cheetah_direction`.

Three learners do the same meta-iterations in turn, so that a slow moment of the machine hits all of them:

    divided    all processes, the tasks divided between them, each with its part of the machine's cores
    alone      process 0 with all tasks and as many threads as all processes together, while the others sleep
    shard      process 0 with one process's number of tasks and threads, while the others sleep

Speed against one process is alone / divided; weak scaling is shard / divided.
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
from metarl.experiments.runner.command_line import OneLineParser, read
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.machine import choose_device
from metarl.experiments.runner.results import REINFORCEMENT
from metarl.experiments.runner.training import one_line_errors


@dataclass(frozen=True)
class Counted(Processes):
    """Processes that note the bytes of every sum.

    Attributes:
        bytes: of each sum so far.
    """

    bytes: list[int] = field(default_factory=list)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """As in `Processes`."""
        self.bytes.append(values.numel() * values.element_size())
        return super().all_reduce_sum(values)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print JSON."""
    parser = OneLineParser(__doc__)
    parser.add_argument("experiment", choices=REINFORCEMENT, help="what to time")
    parser.add_argument("--repeats", type=int, default=7, metavar="INT", help="measurements (default 7)")
    chosen, flags = parser.parse_known_args(sys.argv[1:] if arguments is None else list(arguments))
    with one_line_errors():
        experiment = find_experiment(chosen.experiment)
        request = read(experiment, flags)
        settings = experiment.configure(request.recipe, **request.given)
        processes = distributed.start(choose_device(settings.machine.device))
        with experiment.build(settings) as learner:
            measured = measure(learner, chosen.repeats, processes)
        if processes.rank == 0:
            print(json.dumps(measured, indent=1))
        distributed.end()


def measure(learner: metarl.Learner, repeats: int, processes: Processes) -> dict[str, Any]:
    """Seconds of a meta-iteration and its phases by learner; ratios pair by pair, as median, least and most."""
    ranks, each, sampling = processes.world_size, learner.threads, learner.sampling
    counted = Counted(processes.rank, ranks)
    divided = replace(learner, processes=counted)
    alone = replace(learner, processes=ALONE, threads=each * ranks)
    shard = replace(learner, processes=ALONE, sampling=replace(sampling, num_tasks=sampling.num_tasks // ranks))
    seconds: dict[str, list[float]] = {"divided": [], "alone": [], "shard": []}
    phases: list[dict[str, float]] = []
    for repeat in range(repeats + 1):
        counted.bytes.clear()
        for timed, times in zip((divided, alone, shard), seconds.values(), strict=True):
            took, metrics = _timed(timed, processes)
            if repeat:  # the first builds lanes and fills caches
                times.append(took)
            if repeat and timed is divided:
                phases.append({key: value for key, value in metrics.items() if key.startswith("seconds/")})
    same = [torch.equal(divided.theta[key], value) for key, value in alone.theta.items()]
    ratios = {
        "alone/divided": np.divide(seconds["alone"], seconds["divided"]),
        "shard/divided": np.divide(seconds["shard"], seconds["divided"]),
    }
    horizon = learner.task_distribution.horizon
    return {
        "processes": ranks,
        "threads_each": each,
        "sizes": f"{sampling.num_tasks} tasks x {sampling.episodes_per_task} episodes x {horizon} steps",
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
        processes.all_gather_objects("waits")
        return 0.0, {}
    torch.set_num_threads(learner.threads)
    start = time.perf_counter()
    metrics = learner.step()
    seconds = time.perf_counter() - start
    processes.all_gather_objects("has done")
    return seconds, metrics


def _summary(values: Any) -> dict[str, float]:
    return {"median": float(np.median(values)), "min": float(min(values)), "max": float(max(values))}


if __name__ == "__main__":
    main()
