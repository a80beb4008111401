"""Time the supervised meta-gradient: `python experiments/few_shot_benchmark.py`, with nothing else running."""

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

import metarl
from experiments.settings import choose_threads
from metarl.models import ConvNet


def benchmark_few_shot(
    threads: int = choose_threads(0), repeats: int = 7, inner_steps: Sequence[int] = (1, 5)
) -> dict[str, Any]:
    """Seconds of a meta-iteration, from drawing tasks to updated parameters, by number of inner steps.

    The strided network of 64 filters, 32 tasks, 5-way 1-shot, 15 query images a class, second order.

    Returns:
        per number of steps the median of the wall time, its least value, and the median of the processor time.
    """
    torch.set_num_threads(threads)
    images = torch.randint(0, 256, (50, 20, 28, 28, 1), dtype=torch.uint8)
    episodes = metarl.ImageEpisodes({"train": images}, ways=5, shots=1, queries=15)
    learners = {
        steps: metarl.FewShotLearner(
            episodes, ConvNet((28, 28, 1), 5), metarl.CLASSIFICATION, tasks=32, rule=metarl.GradientDescent(0.4, steps)
        )
        for steps in inner_steps
    }
    wall: dict[int, list[float]] = {steps: [] for steps in learners}
    processor: dict[int, list[float]] = {steps: [] for steps in learners}
    for repeat in range(repeats + 1):
        for steps, learner in learners.items():
            before = time.perf_counter(), time.process_time()
            learner.step()
            if repeat:  # the first is a warm-up
                wall[steps].append(time.perf_counter() - before[0])
                processor[steps].append(time.process_time() - before[1])
    return {
        f"few_shot/{steps}_steps": {
            "seconds": statistics.median(wall[steps]),
            "least_seconds": min(wall[steps]),
            "processor_seconds": statistics.median(processor[steps]),
        }
        for steps in learners
    } | {"threads": threads}


if __name__ == "__main__":
    print(json.dumps(benchmark_few_shot(), indent=1))
