"""Time an experiment's parts: `python experiments/benchmark.py navigation_2d [--json]`.

Parts are measured in turn, several times over, so that a slow moment of the machine hits all of them; medians are
printed with their spread. Run it with nothing else running. The paper's half-cheetah, whose update costs most:

    python experiments/benchmark.py half_cheetah_direction --dynamics paper --horizon 200 --hidden-sizes 100 100 \\
        --activation relu                                  # --product-fraction 1: exact products
"""

import metarl.experiments  # before torch: see there

# isort: split
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from mujoco.rollout import Rollout
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from metarl.core.parameters import ravel
from metarl.core.randomness import keyed_generator
from metarl.envs.mujoco_batch import MujocoBatch
from metarl.experiments.runner.configuration import OneLineParser, parse, setting, with_default
from metarl.experiments.runner.experiment import find_experiment
from metarl.experiments.runner.settings import Settings, choose_device, choose_threads
from metarl.experiments.runner.training import one_line_errors
from metarl.few_shot.networks import MLP, ConvNet
from metarl.rl.learner import Clock, Stage

EXPERIMENTS = (
    "navigation_2d",
    "half_cheetah_direction",
    "half_cheetah_velocity",
    "ant_velocity",
    "ant_direction",
    "ant_goal",
)
FEW_SHOT = ("sine", "omniglot")


@dataclass(frozen=True)
class BenchmarkSettings:
    """Time the parts of a meta-iteration, and of the simulator where there is one.

    Of sine and omniglot (random images, 5-way 1-shot, 15 queries a class, inner loops of one and of five steps) whole
    meta-iterations are timed, and only --tasks, --threads, --device and --repeats count.
    """

    tasks: int = setting(0, "tasks in a meta-batch; 0 for the experiment's own", at_least=0)
    episodes: int = setting(20, "episodes per task", at_least=1)
    horizon: int = setting(100, "length of an episode", unit="steps", at_least=1)
    hidden_sizes: tuple[int, ...] = setting((64, 64), "widths of the hidden layers", at_least=1)
    activation: str = setting("tanh", "of the hidden layers", choices=("relu", "tanh"))
    product_fraction: float = setting(0.1, "share of the samples in Hessian-vector products", more_than=0, at_most=1)
    dynamics: str = setting("gymnasium", "of a simulated body", choices=("paper", "gymnasium"))
    threads: int = with_default(Settings, "threads", 0, "")
    device: str = setting("auto", "where learning happens", choices=("auto", "cpu", "cuda"))
    repeats: int = setting(7, "measurements of each part", at_least=1)


Timings = dict[str, Callable[[], float]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, as a table or as JSON."""
    parser = OneLineParser(BenchmarkSettings.__doc__ or "")
    parser.add_argument("experiment", choices=EXPERIMENTS + FEW_SHOT, help="what to time")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    with one_line_errors():
        chosen, settings = parse(BenchmarkSettings, sys.argv[1:] if arguments is None else arguments, parser, {})
        if chosen.experiment in FEW_SHOT:
            figures = measure_few_shot(chosen.experiment, settings)
        else:
            figures = measure(chosen.experiment, settings)
    if chosen.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        shown = (
            f"{value['median']:>12,.4g}   ({value['min']:,.4g} to {value['max']:,.4g})"
            if isinstance(value, dict)
            else f"{value:>12,.4g}"
            if isinstance(value, float)
            else value
        )
        print(f"{name:<32} {shown}")


def measure(name: str, settings: BenchmarkSettings) -> dict[str, Any]:
    """Time all parts; figures by name, each with median, min and max, and what they were measured on."""
    learner = build_learner(name, settings)
    parts = {**learner_parts(learner), **simulator_parts(learner)}
    found = timed(parts, settings.repeats)
    found["update_flops"] = flops_of(parts["update_seconds"])
    achieved = found["update_flops"] / found["update_seconds"]["median"]
    found["update_share_of_matrix_product"] = achieved / found["matrix_product_flops"]["median"]
    sizes = f"{learner.tasks} tasks x {learner.episodes} episodes x {learner.distribution.horizon} steps"
    return {**found, "sizes": sizes, "machine": machine(learner.threads, learner.device)}


def timed(parts: Timings, repeats: int, warm_ups: int = 1) -> dict[str, Any]:
    """Median, min and max of each part, and the memory that the process has taken."""
    for _ in range(warm_ups):
        for timing in parts.values():
            timing()  # builds lanes, fills caches, records
    measured: dict[str, list[float]] = {part: [] for part in parts}
    for _ in range(repeats):
        for part, timing in parts.items():
            measured[part].append(timing())
    summary = {
        part: {"median": float(np.median(values)), "min": min(values), "max": max(values)}
        for part, values in measured.items()
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**summary, "peak_memory_mb": round(peak)}


def machine(threads: int, device: str) -> str:
    """What was measured on."""
    return f"{platform.machine()}, {threads} threads, {device}, torch {torch.__version__}"


def measure_few_shot(experiment: str, settings: BenchmarkSettings) -> dict[str, Any]:
    """Time meta-iterations from drawing tasks to updated parameters: wall time, processor time, share of the peak.

    Beside each, the same tasks one after another, as `task_by_task` does it.
    """
    device, threads = choose_device(settings.device), choose_threads(settings.threads)
    torch.set_num_threads(threads)
    images = torch.randint(0, 256, (50, 20, 28, 28, 1), dtype=torch.uint8, device=device)
    learners = {}
    for steps in (1, 5):
        rule = metarl.GradientDescent(0.4 if experiment == "omniglot" else 0.01, steps, adapted=("*weight", "*bias"))
        common: dict[str, Any] = {"rule": rule, "device": device}
        learners[f"{steps}_steps"] = (
            metarl.FewShotLearner(
                metarl.ImageEpisodes({"train": images}, ways=5, shots=1, queries=15),
                ConvNet((28, 28, 1), 5),
                metarl.CLASSIFICATION,
                tasks=settings.tasks or 32,
                **common,
            )
            if experiment == "omniglot"
            else metarl.FewShotLearner(
                metarl.Sine(), MLP((1, 40, 40, 1)), metarl.REGRESSION, tasks=settings.tasks or 25, **common
            )
        )
    processor: dict[str, list[float]] = {name: [] for name in learners}

    def iteration(name: str) -> float:
        before = time.process_time()
        seconds = _seconds(learners[name].step)
        processor[name].append(time.process_time() - before)
        return seconds

    parts: Timings = {"matrix_product_flops": matrix_product(device)}
    for name, learner in learners.items():
        parts[f"{name}/seconds"] = partial(iteration, name)
        parts[f"{name}/task_by_task_seconds"] = partial(_seconds, task_by_task(learner))
    found = timed(parts, settings.repeats, warm_ups=6)
    for name, learner in learners.items():
        flops = flops_of(partial(learner.gradient, learner.sample(learner.tasks, "train")))
        found[f"{name}/processor_seconds"] = float(np.median(processor[name][-settings.repeats :]))
        found[f"{name}/flops"] = flops
        achieved = flops / found[f"{name}/seconds"]["median"]
        found[f"{name}/share_of_matrix_product"] = achieved / found["matrix_product_flops"]["median"]
    return {**found, "machine": machine(threads, device)}


def task_by_task(learner: metarl.FewShotLearner) -> Callable[[], None]:
    """A meta-iteration as most libraries do it: a graph per task, one after another, and torch's own convolutions."""
    network: nn.Module = MLP((1, 40, 40, 1))
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss
    if isinstance(learner.module, ConvNet):
        blocks = [
            nn.Sequential(nn.Conv2d(channels, 64, 3, 2, 1), nn.BatchNorm2d(64, track_running_stats=False), nn.ReLU())
            for channels in (1, 64, 64, 64)
        ]
        network = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
        loss = F.cross_entropy
    adam = torch.optim.Adam(network.to(learner.device).parameters(), learner.learning_rate)

    def outputs(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        inputs = inputs.movedim(-1, 1) if inputs.ndim == 4 else inputs
        return functional_call(network, parameters, (inputs,))

    def iteration() -> None:
        tasks = learner.sample(learner.tasks, "train")
        adam.zero_grad()
        for task in range(learner.tasks):
            phi: dict[str, Tensor] = dict(network.named_parameters())
            for _ in range(learner.rule.steps):
                inner = loss(outputs(phi, tasks.support.inputs[task]), tasks.support.targets[task])
                gradients = torch.autograd.grad(inner, list(phi.values()), create_graph=True)
                phi = {name: value - 0.01 * g for (name, value), g in zip(phi.items(), gradients, strict=True)}
            outer = loss(outputs(phi, tasks.query.inputs[task]), tasks.query.targets[task])
            (outer / learner.tasks).backward()
        adam.step()

    return iteration


def flops_of(call: Callable[[], Any]) -> int:
    """Floating-point operations of a call's matrix products and convolutions.

    Counted on one thread: the counter does not see what `parallel_map` does on others.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with FlopCounterMode(display=False) as counter:
        call()
    torch.set_num_threads(threads)
    return counter.get_total_flops()


def matrix_product(device: str) -> Callable[[], float]:
    """Floating-point operations per second of a large product."""

    def measure() -> float:
        a = torch.randn(2000, 2000, device=device)
        return 2 * 2000**3 / _seconds(lambda: (a @ a).sum().item())

    return measure


def build_learner(name: str, settings: BenchmarkSettings) -> metarl.Learner:
    """The learner of an experiment, of the sizes to be timed."""
    experiment = find_experiment(name)
    wanted = {field.name for field in fields(experiment.settings)}
    given = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name in wanted}
    if not settings.tasks:
        del given["tasks"]
    return experiment.build(experiment.settings(**given))


def learner_parts(learner: metarl.Learner) -> Timings:
    """One meta-iteration, and its phases one by one on fixed data."""
    tasks = learner.distribution.sample(learner.tasks, keyed_generator(0, "benchmark"))
    support, query = learner.adapt(tasks, 1)
    vector = ravel(list(learner.theta.values()))

    def rollout() -> float:
        stages: list[Stage] = []
        clock = Clock(learner.device)
        stages.extend(learner.adapt(tasks, 0, clock=clock))
        return stages[0].episodes.steps / clock.seconds["rollout"]

    def update() -> None:
        objective = learner.objective([support, query])
        learner.outer.update(objective, vector, keyed_generator(0, "benchmark/products"), learner.outer_state)

    return {
        "rollout_steps_per_s": rollout,
        "adapt_seconds": lambda: _seconds(lambda: learner.inner_step(support.parameters, support.samples, 0)),
        "update_seconds": lambda: _seconds(update),
        "meta_iteration_seconds": lambda: _seconds(learner.step),
        "matrix_product_flops": matrix_product(learner.device),
    }


def simulator_parts(learner: metarl.Learner) -> Timings:
    """Steps per second of the physics alone, of our batch, and of gymnasium's own vector environment."""
    distribution = learner.distribution
    lanes, horizon = learner.tasks * learner.episodes, distribution.horizon
    batch = distribution.make(lanes, learner.threads)
    if not isinstance(batch, MujocoBatch):
        return {}
    body, model = batch.body, batch.body.model
    tasks = distribution.sample(learner.tasks, keyed_generator(0, "benchmark"))
    actions = np.random.default_rng(0).uniform(-1, 1, (horizon, lanes, model.nu))
    batch.reset(seed=0, options={"tasks": tasks})
    state_size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS)
    initial = np.zeros((lanes, state_size))
    initial[:, 1 : 1 + model.nq] = batch.state["qpos"]
    initial[:, 1 + model.nq : 1 + model.nq + model.nv] = batch.state["qvel"]
    controls = np.ascontiguousarray(np.repeat(actions, body.frame_skip, axis=0).transpose(1, 0, 2))
    states = np.zeros((lanes, horizon * body.frame_skip, state_size))
    engine, scratch = Rollout(nthread=learner.threads), [mujoco.MjData(model) for _ in range(learner.threads)]

    def open_loop() -> float:
        seconds = _seconds(lambda: engine.rollout(model, scratch, initial, controls, state=states))
        return lanes * horizon / seconds

    def ours() -> float:
        batch.reset(seed=0, options={"tasks": tasks})
        lengths: list[int] = []

        def run() -> None:
            for action in actions:
                lengths.append(int((~batch.finished).sum()))
                batch.step(action)

        return _per_second(run, lambda: sum(lengths))

    parts: Timings = {"physics_open_loop_steps_per_s": open_loop, "batch_steps_per_s": ours}
    if batch.distribution.dynamics == "gymnasium":
        name = "HalfCheetah-v5" if "cheetah" in batch.distribution.name else "Ant-v5"
        makers = [lambda: gymnasium.make(name)] * 16
        theirs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)

        def sync() -> float:
            theirs.reset(seed=0)
            steps = min(horizon, 50)
            return _per_second(
                lambda: [theirs.step(a[:16].astype(np.float32)) for a in actions[:steps]], lambda: 16 * steps
            )

        parts["sync_vector_env_steps_per_s"] = sync
    return parts


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _per_second(call: Callable[[], Any], count: Callable[[], int]) -> float:
    seconds = _seconds(call)
    return count() / seconds


if __name__ == "__main__":
    main()
