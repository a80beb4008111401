"""The parts that `experiments/benchmark.py` times, each as a function that returns what it measured."""

import importlib.util
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import replace
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

import metarl
from metarl.core.parameters import ravel
from metarl.core.randomness import keyed_generator
from metarl.core.settings import SettingError
from metarl.envs.mujoco_batch import MujocoBatch
from metarl.experiments.runner.embedding_methods import EMBEDDING_METHODS, embedding
from metarl.experiments.runner.machine import prepare_process
from metarl.few_shot.networks import MLP, ConvNet

Timings = dict[str, Callable[[], float]]


def learner_parts(learner: metarl.Learner) -> Timings:
    """One meta-iteration, and its phases one by one on fixed data."""
    tasks = learner.task_distribution.sample(learner.sampling.num_tasks, keyed_generator(0, "benchmark"))
    support, query = learner.adapt(tasks, 1)
    vector = ravel(list(learner.theta.values()))

    def rollout() -> float:
        before, metrics = learner.env_steps, learner.step()
        return (learner.env_steps - before) / metrics["seconds/rollout"]

    def update() -> None:
        objective = learner.objective([support, query])
        learner.outer.update(objective, vector, keyed_generator(0, "benchmark/products"), learner.state.outer)

    return {
        "rollout_steps_per_s": rollout,
        "adapt_seconds": lambda: seconds_of(lambda: learner.inner_step(support.parameters, support.samples, 0)),
        "update_seconds": lambda: seconds_of(update),
        "meta_iteration_seconds": lambda: seconds_of(learner.step),
        "matrix_product_flops": matrix_product(learner.device),
    }


def simulator_parts(learner: metarl.Learner) -> Timings:
    """Steps per second of the physics alone, of our batch, and of gymnasium's own vector environment."""
    distribution, sampling = learner.task_distribution, learner.sampling
    lanes, horizon = sampling.num_tasks * sampling.episodes_per_task, distribution.horizon
    batch = distribution.make(lanes, learner.threads)
    if not isinstance(batch, MujocoBatch):
        return {}
    body, model = batch.body, batch.body.model
    tasks = distribution.sample(sampling.num_tasks, keyed_generator(0, "benchmark"))
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
        seconds = seconds_of(lambda: engine.rollout(model, scratch, initial, controls, state=states))
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
        if importlib.util.find_spec("imageio") is None:
            raise SettingError("--dynamics gymnasium is timed beside gymnasium's own, which needs the extra video: "
                               "pip install '.[video]'")  # fmt: skip
        name = "HalfCheetah-v5" if "cheetah" in batch.distribution.name else "Ant-v5"
        count = min(16, lanes)
        makers = [lambda: gymnasium.make(name)] * count
        theirs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)

        def sync() -> float:
            theirs.reset(seed=0)
            steps = min(horizon, 50)
            return _per_second(
                lambda: [theirs.step(a[:count].astype(np.float32)) for a in actions[:steps]], lambda: count * steps
            )

        parts["sync_vector_env_steps_per_s"] = sync
    return parts


def few_shot_parts(name: str, settings: Any) -> tuple[Timings, str]:
    """Meta-iterations with one and with five inner steps, each beside the same tasks one after another.

    Omniglot's images are random, 5-way 1-shot with 15 queries a class; of the settings the number of tasks counts, and
    whether meta-gradients are compiled. To them come the methods that embed.

    Returns:
        the parts, and the sizes in words.
    """
    device, num_tasks = prepare_process(settings), settings.episodes.num_tasks
    parts: Timings = {"matrix_product_flops": matrix_product(device)}
    for inner_steps in (1, 5):
        learner = replace(few_shot_learner(name, inner_steps, num_tasks, device), compiled=settings.machine.compiled)
        parts[f"{inner_steps}_steps/seconds"] = partial(seconds_of, learner.step)
        parts[f"{inner_steps}_steps/task_by_task_seconds"] = partial(seconds_of, _task_by_task(learner))
    if name == "omniglot":
        parts |= _embedding_parts(device)
    return parts, f"{num_tasks} tasks"


def _embedding_parts(device: str) -> Timings:
    """An iteration of each method that embeds: episodes of 60 ways, 1 shot and 5 queries, or the method's own batch.

    Prototypical networks stand beside the same in torch's layers and their usual order of memory, in two passes.
    """
    images = torch.randint(0, 256, (200, 20, 28, 28, 1), dtype=torch.uint8, device=device)
    episodes = metarl.ImageEpisodes({"train": images}, ways=60, shots=1, queries=5)
    parts: Timings = {}
    for name, kind in EMBEDDING_METHODS.items():
        method = kind().build(embedding(kind(), (28, 28, 1), 64), episodes)
        learner = metarl.FewShotLearner(episodes, method, num_tasks=1, device=device)
        parts[f"{name}/seconds"] = partial(seconds_of, learner.step)
        if name == "prototypical":
            parts[f"{name}/plain_seconds"] = partial(seconds_of, _plain_prototypes(learner))
    return parts


def _plain_prototypes(learner: metarl.FewShotLearner) -> Callable[[], None]:
    blocks = [
        nn.Sequential(nn.Conv2d(channels, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2))
        for channels in (1, 64, 64, 64)
    ]
    network = nn.Sequential(*blocks, nn.Flatten()).to(learner.device)
    adam = torch.optim.Adam(network.parameters(), 0.001)

    def iteration() -> None:
        tasks = learner.sample(1, "train")
        adam.zero_grad()
        support, query = (network(of.inputs[0].movedim(-1, 1).contiguous()) for of in (tasks.support, tasks.query))
        logits = -torch.cdist(query, support).square()  # one shot, in the order of classes
        F.cross_entropy(logits, tasks.query.targets[0]).backward()
        adam.step()

    return iteration


def few_shot_learner(name: str, inner_steps: int, num_tasks: int, device: str) -> metarl.FewShotLearner:
    """MAML on sine curves or on random images as large as Omniglot's, 5-way 1-shot with 15 queries a class."""
    if name == "sine":
        rule = metarl.GradientDescent(0.01, inner_steps)
        method = metarl.MAML(MLP((1, 40, 40, 1)), metarl.REGRESSION, rule)
        return metarl.FewShotLearner(metarl.Sine(), method, num_tasks, device=device)
    images = torch.randint(0, 256, (50, 20, 28, 28, 1), dtype=torch.uint8, device=device)
    episodes = metarl.ImageEpisodes({"train": images}, ways=5, shots=1, queries=15)
    rule = metarl.GradientDescent(0.4, inner_steps, adapted=("*weight", "*bias"))
    method = metarl.MAML(ConvNet((28, 28, 1), 5), metarl.CLASSIFICATION, rule)
    return metarl.FewShotLearner(episodes, method, num_tasks, device=device)


def _task_by_task(learner: metarl.FewShotLearner) -> Callable[[], None]:
    """A meta-iteration as most libraries do it: a graph per task, one after another, and torch's own convolutions."""
    network: nn.Module = MLP((1, 40, 40, 1))
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss
    if isinstance(learner.method.module, ConvNet):
        blocks = [
            nn.Sequential(nn.Conv2d(channels, 64, 3, 2, 1), nn.BatchNorm2d(64, track_running_stats=False), nn.ReLU())
            for channels in (1, 64, 64, 64)
        ]
        network = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
        loss = F.cross_entropy
    adam = torch.optim.Adam(network.to(learner.device).parameters(), 0.001)

    def outputs(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        inputs = inputs.movedim(-1, 1) if inputs.ndim == 4 else inputs
        return functional_call(network, parameters, (inputs,))

    def iteration() -> None:
        tasks = learner.sample(learner.num_tasks, "train")
        adam.zero_grad()
        for task in range(learner.num_tasks):
            phi: dict[str, Tensor] = dict(network.named_parameters())
            for _ in range(learner.method.inner_steps):
                inner = loss(outputs(phi, tasks.support.inputs[task]), tasks.support.targets[task])
                gradients = torch.autograd.grad(inner, list(phi.values()), create_graph=True)
                phi = {name: value - 0.01 * g for (name, value), g in zip(phi.items(), gradients, strict=True)}
            outer = loss(outputs(phi, tasks.query.inputs[task]), tasks.query.targets[task])
            (outer / learner.num_tasks).backward()
        adam.step()

    return iteration


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


def with_floors(found: dict[str, Any], parts: Timings, env_steps: int) -> dict[str, Any]:
    """Add to what was measured how fast the machine could be: `flops`, `floor` and `share_of_floor` of each part.

    The least time of seconds is that of their matrix products and convolutions at the speed of a large product; a
    meta-iteration's environment steps come on top of it, at the speed of the physics alone, with which steps per second
    are compared, too.

    Args:
        found: as `timed` returns it.
        parts: that were timed.
        env_steps: of a meta-iteration.
    """
    speed = found["matrix_product_flops"]["median"]
    physics = found.get("physics_open_loop_steps_per_s", {}).get("median")
    complete = dict(found)
    for name in parts:
        if name.endswith("seconds") and "task_by_task" not in name and "plain" not in name:
            flops = flops_of(parts[name])
            floor = flops / speed + (env_steps / physics if physics and name == "meta_iteration_seconds" else 0)
            own = {"flops": flops, "floor": floor, "share_of_floor": floor / found[name]["median"]}
        elif physics and name in ("batch_steps_per_s", "rollout_steps_per_s"):
            own = {"floor": physics, "share_of_floor": found[name]["median"] / physics}
        else:
            continue
        complete[name] = {**found[name], **own}
    return complete


def machine() -> str:
    """What was measured on."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


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
        return 2 * 2000**3 / seconds_of(lambda: (a @ a).sum().item())

    return measure


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes, with what a GPU still has to do after it."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _per_second(call: Callable[[], Any], count: Callable[[], int]) -> float:
    seconds = seconds_of(call)
    return count() / seconds
