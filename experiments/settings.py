"""The settings that all meta-reinforcement-learning experiments share, and the learner built from them."""

import os
from dataclasses import dataclass

import torch

import metarl
from envs import ObservedTasks, TaskDistribution
from experiments.configuration import SettingError, setting
from metarl.policies import ACTIVATIONS


@dataclass(frozen=True)
class Settings:
    """Settings of a meta-reinforcement-learning run; experiments change the defaults that the paper changes."""

    seed: int = setting(0, "names all randomness of the run", at_least=0)
    iterations: int = setting(100, "meta-iterations in all", at_least=1, changeable=True, source="paper")
    tasks: int = setting(20, "tasks in a meta-batch", at_least=1, source="paper")
    episodes: int = setting(20, "episodes per task, before and after each inner step", at_least=1, source="paper")
    horizon: int = setting(100, "length of an episode", unit="steps", at_least=1, source="paper")
    discount: float = setting(0.99, "factor of later rewards", at_least=0, at_most=1, source="paper's code")
    gae_lambda: float = setting(1.0, "factor of later advantages", at_least=0, at_most=1, source="paper's code")
    bootstrap: bool = setting(False, "value the state at the time limit instead of taking 0 there", source="paper")
    weighting: str = setting(
        "timestep",
        "which parts of a task weigh the same in its losses",
        choices=("timestep", "episode"),
        source="paper",
    )
    inner_steps: int = setting(1, "gradient steps of the inner loop in training", at_least=0, source="paper")
    inner_step_size: float = setting(0.1, "step size of the inner loop", more_than=0, source="paper")
    order: str = setting(
        "second", "whether the meta-gradient runs through the inner one", choices=("first", "second"), source="paper"
    )
    observe_task: bool = setting(
        False, "show the task to the policy, as the oracle of the paper's figures sees it", source="paper"
    )
    max_kl: float = setting(
        0.01, "bound on the mean KL of a meta-update", unit="nats", more_than=0, source="paper's code"
    )
    product_fraction: float = setting(
        0.2,
        "share of the samples in Hessian-vector products",
        more_than=0,
        at_most=1,
        source="ours, for speed; paper 1",
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
        len(os.sched_getaffinity(0)), "of physics and mathematics; here: all cores", at_least=1, changeable=True
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
    """Turn `auto` into what there is; SettingError for a GPU where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device = cuda, but no CUDA GPU is available; allowed here: auto, cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def build_learner(settings: Settings, distribution: TaskDistribution) -> metarl.Learner:
    """The learner of an experiment: a Gaussian MLP policy, MAML's inner loop, TRPO outside."""
    device = choose_device(settings.device)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    if settings.observe_task:
        distribution = ObservedTasks(distribution)
    policy = metarl.GaussianMLP(
        distribution.observation_space, distribution.action_space, settings.hidden_sizes, settings.activation
    )
    rule = metarl.GradientDescent(settings.inner_step_size, settings.inner_steps, settings.order == "second")
    return metarl.Learner(
        distribution,
        policy,
        tasks=settings.tasks,
        episodes=settings.episodes,
        rule=rule,
        outer=metarl.TRPO(settings.max_kl, settings.product_fraction),
        discount=settings.discount,
        gae_lambda=settings.gae_lambda,
        bootstrap=settings.bootstrap,
        weighting=settings.weighting,
        seed=settings.seed,
        threads=settings.threads,
        device=device,
    )
