"""The settings that all meta-reinforcement-learning experiments share, and the learner built from them."""

import os
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import nn

import metarl
from metarl.core.distributed import local_rank, local_size
from metarl.envs import ObservedTasks, TaskDistribution
from metarl.experiments.runner.configuration import SettingError, setting
from metarl.rl.advantages import BASELINES
from metarl.rl.estimators import ESTIMATORS
from metarl.rl.outer import OuterOptimiser
from metarl.rl.policies import ACTIVATIONS


@dataclass(frozen=True)
class Settings:
    """Settings of a meta-reinforcement-learning run; experiments change the defaults that the paper changes."""

    seed: int = setting(0, "names all randomness of the run", at_least=0, at_most=10**18)
    iterations: int = setting(100, "meta-iterations in all", at_least=1, changeable=True, source="paper")
    tasks: int = setting(20, "tasks in a meta-batch", at_least=1, source="paper")
    episodes: int = setting(20, "episodes per task, before and after each inner step", at_least=1, source="paper")
    budget: str = setting(
        "episodes",
        "what --episodes counts: episodes; or the steps of that many at full length, so that a task whose episodes end "
        "early gets more of them",
        choices=("episodes", "steps"),
        source="paper; its code counted steps",
    )
    horizon: int = setting(100, "length of an episode", unit="steps", at_least=1, source="paper")
    discount: float = setting(0.99, "factor of later rewards", at_least=0, at_most=1, source="paper's code")
    gae_lambda: float = setting(1.0, "factor of later advantages", at_least=0, at_most=1, source="paper's code")
    support_lambda: float | None = setting(
        None, "--gae-lambda of the data of inner steps, if another", at_least=0, at_most=1, source="paper"
    )
    survival_bonus: float = setting(
        0.0,
        "added to every reward that learning sees, but not to returns: ending an episode early no longer pays where "
        "rewards are negative",
        at_least=0,
        source="paper",
    )
    bounds_penalty: float = setting(
        0.0,
        "taken from every reward that learning sees, but not from returns, times the squared distance of the action "
        "from the bounds it is clipped to",
        at_least=0,
        source="paper",
    )
    bootstrap: bool = setting(False, "value the state at the time limit instead of taking 0 there", source="paper")
    baseline: str = setting(
        "linear",
        "what predicts the returns: observations and their squares, or also the products of their numbers",
        choices=BASELINES,
        source="paper's code",
    )
    weighting: str = setting(
        "timestep",
        "which parts of a task weigh the same in its losses",
        choices=("timestep", "episode"),
        source="paper",
    )
    inner_steps: int = setting(1, "gradient steps of the inner loop in training", at_least=0, source="paper")
    inner_step_size: float = setting(
        0.1,
        "step size of the inner loop",
        more_than=0,
        changeable=("adaptation", "maml", "anil", "cavia"),  # not where it is learned
        source="paper",
    )
    later_factor: float = setting(
        0.5,
        "of the step size, after as many steps as training takes",
        more_than=0,
        changeable=True,
        source="paper's code",
    )
    order: str = setting(
        "second", "whether the meta-gradient runs through the inner one", choices=("first", "second"), source="paper"
    )
    estimator: str = setting(
        "score", "inner loss; they differ in their second derivatives", choices=tuple(ESTIMATORS), source="paper"
    )
    initial_sampling: bool = setting(
        False, "E-MAML's term for how the support data depend on the policy; with score", source="paper"
    )
    multi_step: bool = setting(
        False,
        "let the policies after all inner steps count alike in the outer loss, as in MAML++, not the last ones alone",
        source="paper",
    )
    adaptation: str = setting(
        "maml",
        "what the inner loop moves, and how: everything; with learned step sizes per parameter, or per layer and step; "
        "the last layer; a context vector",
        choices=("maml", "meta-sgd", "layer-step-sizes", "anil", "cavia"),
        source="paper",
    )
    context_size: int = setting(
        5, "numbers in the context vector", at_least=1, source="ours", only=("adaptation", "cavia")
    )
    outer: str = setting("trpo", "outer optimiser", choices=("trpo", "ppo", "adam", "reptile"), source="paper")
    observe_task: bool = setting(
        False, "show the task to the policy, as the oracle of the paper's figures sees it", source="paper"
    )
    max_kl: float = setting(
        0.01,
        "bound on the mean KL of a meta-update",
        unit="nats",
        more_than=0,
        source="paper's code",
        only=("outer", "trpo"),
    )
    product_fraction: float = setting(
        0.1,
        "share of the samples in Hessian-vector products",
        only=("outer", "trpo"),
        more_than=0,
        at_most=1,
        source="ours, for speed; paper 1",
    )
    outer_step_size: float = setting(
        0.001, "step size of Adam", more_than=0, source="ProMP's code", only=("outer", "ppo", "adam")
    )
    epochs: int = setting(5, "steps on the same data", at_least=1, source="ProMP's code", only=("outer", "ppo"))
    clip: float = setting(
        0.2, "change of a ratio that still pays", more_than=0, at_most=1, source="ProMP's code", only=("outer", "ppo")
    )
    inner_kl: float = setting(
        0.01,
        "target of the KL before each inner step",
        unit="nats",
        more_than=0,
        source="ProMP's code",
        only=("outer", "ppo"),
    )
    reptile_step_size: float = setting(
        0.1,
        "share of the way to the adapted parameters",
        more_than=0,
        at_most=1,
        source="ours",
        only=("outer", "reptile"),
    )
    hidden_sizes: tuple[int, ...] = setting((100, 100), "widths of the hidden layers", at_least=1, source="paper")
    activation: str = setting("relu", "of the hidden layers", choices=tuple(ACTIVATIONS), source="paper")
    max_failed: float = setting(
        0.1,
        "share of an iteration's episodes that may blow up before the run stops",
        at_least=0,
        at_most=1,
        changeable=True,
    )
    device: str = setting("auto", "where learning happens", choices=("auto", "cpu", "cuda"), changeable=True)
    threads: int = setting(
        0,
        "of physics and mathematics in each process; 0 divides the machine's cores between its processes",
        at_least=0,
        changeable=True,
    )
    task_chunk: int = setting(
        0, "tasks handled at a time; 0 chooses by the cache, and on a GPU all", at_least=0, changeable=True
    )
    shrink_chunks: bool = setting(
        False, "halve the task chunk whenever the GPU is out of memory; with one process", changeable=True
    )
    checkpoint_every: int = setting(1, "iterations between checkpoints", at_least=1, changeable=True)
    evaluate_every: int = setting(
        25, "iterations between evaluations on test tasks; 0 for none", at_least=0, changeable=True
    )
    evaluation_tasks: int = setting(40, "test tasks", at_least=1, source="paper", changeable=True)
    evaluation_episodes: int = setting(
        40, "episodes per test task and step", at_least=1, source="paper", changeable=True
    )
    evaluation_steps: int = setting(3, "gradient steps at test time", at_least=0, source="paper", changeable=True)


def choose_device(device: str) -> str:
    """Turn `auto` into what there is, one GPU for each process; SettingError where there are too few."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device = cuda, but no CUDA GPU is available; allowed here: auto, cpu")
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    gpus, processes = torch.cuda.device_count(), local_size()
    if processes > gpus:
        raise SettingError(f"{processes} processes on {gpus} GPUs; allowed: one process per GPU, or --device cpu")
    return f"cuda:{local_rank()}"


def prepare_process(settings: Any) -> str:
    """Set the threads, the device and the seed of PyTorch; the device."""
    device = choose_device(settings.device)
    if device != "cpu":
        torch.cuda.set_device(device)
    torch.set_num_threads(choose_threads(settings.threads))
    torch.manual_seed(settings.seed)
    return device


def choose_threads(threads: int) -> int:
    """Turn 0 into this process's part of the cores. (torchrun sets OMP_NUM_THREADS=1, which plays no part in it.)"""
    return threads or max(1, len(os.sched_getaffinity(0)) // local_size())


def build_learner(settings: Settings, distribution: TaskDistribution) -> metarl.Learner:
    """The learner of an experiment: by default a Gaussian MLP policy, MAML's inner loop, TRPO outside."""
    device = prepare_process(settings)
    if settings.observe_task:
        distribution = ObservedTasks(distribution)
    try:
        return metarl.Learner(
            distribution,
            build_policy(settings, distribution),
            tasks=settings.tasks,
            episodes=settings.episodes,
            rule=build_rule(settings),
            estimator=ESTIMATORS[settings.estimator],
            initial_sampling=settings.initial_sampling,
            multi_step=settings.multi_step,
            outer=build_outer(settings),
            discount=settings.discount,
            gae_lambda=settings.gae_lambda,
            support_lambda=settings.support_lambda,
            survival_bonus=settings.survival_bonus,
            bounds_penalty=settings.bounds_penalty,
            bootstrap=settings.bootstrap,
            baseline=settings.baseline,
            weighting=settings.weighting,
            budget=settings.budget,
            seed=settings.seed,
            threads=choose_threads(settings.threads),
            device=device,
            task_chunk=settings.task_chunk or None,
        )
    except ValueError as error:  # settings that do not go together
        raise SettingError(str(error)) from error


def build_policy(settings: Settings, distribution: TaskDistribution) -> nn.Module:
    """A Gaussian MLP, which for cavia reads a context vector beside the observation."""
    observations, actions = distribution.observation_space, distribution.action_space
    if settings.adaptation != "cavia":
        return metarl.GaussianMLP(observations, actions, settings.hidden_sizes, settings.activation)
    wider = Box(-np.inf, np.inf, (gymnasium.spaces.flatdim(observations) + settings.context_size,))
    body = metarl.GaussianMLP(wider, actions, settings.hidden_sizes, settings.activation)
    return metarl.WithContext(body, settings.context_size)


def build_rule(settings: Settings) -> metarl.GradientDescent:
    """The adaptation rule; `anil` adapts the last layer and the log standard deviation, the head of the network."""
    kind: type[metarl.GradientDescent] = metarl.GradientDescent
    changes: dict[str, Any] = {}
    match settings.adaptation:
        case "meta-sgd":
            kind = metarl.MetaSGD
        case "layer-step-sizes":
            kind = metarl.LayerStepSizes
        case "anil":
            changes = {"adapted": (f"mean.{2 * len(settings.hidden_sizes)}.*", "log_std")}
        case "cavia":
            changes = {"adapted": ("context",), "from_zero": True}
    return kind(
        settings.inner_step_size,
        settings.inner_steps,
        settings.order == "second",
        later_factor=settings.later_factor,
        **changes,
    )


def build_outer(settings: Settings) -> OuterOptimiser:
    """The outer optimiser."""
    match settings.outer:
        case "ppo":
            return metarl.PPO(settings.outer_step_size, settings.epochs, settings.clip, settings.inner_kl)
        case "adam":
            return metarl.Adam(settings.outer_step_size)
        case "reptile":
            return metarl.Reptile(settings.reptile_step_size)
        case _:
            return metarl.TRPO(settings.max_kl, settings.product_fraction)
