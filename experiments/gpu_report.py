"""Compare a GPU with the CPU of the same machine: `python experiments/gpu_report.py [--device cuda]`.

It checks that both compute the same, times adaptation, updates and meta-iterations on both, and says how much memory
they take and where the time goes: a table, and the same as JSON in a file. It needs no data, and at most eight minutes.
"""

import metarl.experiments  # noqa: F401  # before torch: see there

# isort: split
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from metarl.core.settings import SettingError
from metarl.experiments.runner.benchmarks import Timings, few_shot_learner, learner_parts, machine, seconds_of, timed
from metarl.experiments.runner.command_line import OneLineParser
from metarl.experiments.runner.device_parity import few_shot_parity, policy_parity
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.machine import choose_device
from metarl.experiments.runner.training import one_line_errors
from metarl.runs import write_atomically

POLICIES: dict[str, tuple[str, str, dict[str, Any]]] = {  # experiment, recipe and changes, by what the report calls it
    "navigation, exact products": ("navigation_2d", "paper", {"hidden_sizes": (64, 64), "hvp_sample_fraction": 1.0}),
    "half-cheetah direction, exact products": ("half_cheetah_direction", "paper", {"hvp_sample_fraction": 1.0}),
    "half-cheetah direction, recommended": ("half_cheetah_direction", "recommended", {}),
}
IMAGE_TASKS = 32
SMALL = {"num_tasks": 4, "episodes_per_task": 5, "horizon": 40}  # episodes of parity checks
REPEATS = {"cpu": 2, "cuda": 7}
RECORDED = 12  # calls after which what is to be recorded has been
OPERATIONS = 8  # that the report names


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print a table, and write the report."""
    parser = OneLineParser("Compare a GPU with the CPU of the same machine: parity, times, memory.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu tries the report out")
    parser.add_argument("--output", type=Path, default=Path("gpu_report.json"), metavar="FILE", help="report as JSON")
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    with one_line_errors():
        device = choose_device(chosen.device)
        if not chosen.output.parent.is_dir():
            raise SettingError(f"--output = {chosen.output}, whose folder does not exist; allowed: a file in one")
        found = report(device, POLICIES, IMAGE_TASKS)
        write_atomically(chosen.output, (json.dumps(found, indent=1) + "\n").encode())
    print(as_text(found))
    print(f"report in {chosen.output}")


def report(device: str, policies: Mapping[str, tuple[str, str, dict[str, Any]]], image_tasks: int) -> dict[str, Any]:
    """Return parity, times, memory and the costliest operations of a device, and the times of the CPU.

    Args:
        device: of torch.
        policies: experiment, recipe and changes of each policy update, by name.
        image_tasks: tasks of a meta-batch of images.
    """
    parity = []
    for name, (experiment, recipe, changes) in policies.items():
        build = partial(_build, experiment, recipe, {**changes, **SMALL})
        parity += [(f"{name}: {of.quantity}", of) for of in policy_parity(build, device)]
    parity += [(of.quantity, of) for steps in (1, 5) for of in few_shot_parity(steps, 2, device)]
    times: dict[str, dict[str, Any]] = {}
    operations: dict[str, list[dict[str, Any]]] = {}
    for place in dict.fromkeys((device, "cpu")):
        for name, (experiment, recipe, changes) in policies.items():
            with _build(experiment, recipe, changes, place) as learner:
                parts = learner_parts(learner)
                times.setdefault(name, {})[place] = _timed(parts, place, warm_ups=1)
                if place == device:
                    operations[name] = _costliest(parts, "update_seconds", device)
        for steps in (1, 5):
            step = few_shot_learner("omniglot", steps, image_tasks, place).step
            parts = {"meta_iteration_seconds": partial(seconds_of, step)}
            name = f"Omniglot, {image_tasks} tasks, {steps} inner step{'s' * (steps > 1)}"
            times.setdefault(name, {})[place] = _timed(parts, place, warm_ups=RECORDED)
            if place == device:
                operations[name] = _costliest(parts, "meta_iteration_seconds", device)
    return {
        "machine": machine(),
        "device": torch.cuda.get_device_name(device) if device != "cpu" else "cpu",
        "parity": {name: {**asdict(of), "holds": of.holds} for name, of in parity},
        "times": times,
        "operations": operations,
    }


def as_text(found: Mapping[str, Any]) -> str:
    """A report as a table: parity, then each time on the device and on the CPU with their ratio, then operations."""
    lines = [f"{found['device']} beside {found['machine']}", "", "parity: difference relative to the CPU, tolerance"]
    for name, of in found["parity"].items():
        verdict = "holds" if of["holds"] else "FAILS"
        lines.append(f"  {name:<70} {of['difference']:9.1e} {of['tolerance']:9.1e}  {verdict}")
    lines += ["", f"{'seconds':<72} {'device':>9} {'cpu':>9} {'cpu / device':>12}"]
    for name, places in found["times"].items():
        own, cpu = next(iter(places.values())), places["cpu"]
        for part in (part for part in own if part.endswith("_seconds")):
            device, host = own[part]["median"], cpu[part]["median"]
            words = f"{name}: {part.removesuffix('_seconds').replace('_', ' ')}"
            lines.append(f"  {words:<70} {device:9.4f} {host:9.4f} {host / device:12.1f}")
        lines.append(f"  {name + ': peak memory, MB':<70} {own['peak_memory_mb']:9,.0f}")
    for name, costliest in found["operations"].items():
        shares = ", ".join(f"{of['operation']} {100 * of['share']:.0f} %" for of in costliest)
        lines += ["", f"{name}: {shares}"]
    return "\n".join(lines)


def _build(experiment: str, recipe: str, changes: Mapping[str, Any], device: str) -> Any:
    of = find_experiment(experiment)
    return of.build(of.configure(recipe, **{**changes, "device": device.split(":")[0]}))


def _timed(parts: Timings, device: str, warm_ups: int) -> dict[str, Any]:
    """Times of parts, and the most memory that they took: of the GPU, or of the process on a CPU."""
    kind = device.split(":")[0]
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    measured = timed(parts, REPEATS[kind], warm_ups)
    if kind == "cuda":
        measured["peak_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return measured


def _costliest(parts: Timings, part: str, device: str) -> list[dict[str, Any]]:
    """The operations that take most of the device's time in a part, with their share of it."""
    on_gpu = device != "cpu"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with profile(activities=activities) as seen:
        parts[part]()
    events = [(of.key, of.self_device_time_total if on_gpu else of.self_cpu_time_total) for of in seen.key_averages()]
    total = sum(time for _, time in events) or 1
    ranked = sorted(events, key=lambda of: -of[1])[:OPERATIONS]
    return [{"operation": name, "share": round(time / total, 4)} for name, time in ranked]


if __name__ == "__main__":
    main()
