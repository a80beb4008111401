"""Do two devices compute the same? The same numbers from the same data on the CPU and on another device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import metarl
from metarl.core.parameters import Parameters, expand_over_tasks, ravel
from metarl.core.randomness import keyed_generator
from metarl.experiments.runner.benchmarks import few_shot_learner
from metarl.few_shot.tasks import Examples, FewShotTasks
from metarl.rl.adaptation_step import AdaptationStep

TOLERANCE = 1e-3  # of the length of what the CPU finds, in float32; conjugate gradient adds to rounding


@dataclass(frozen=True)
class Parity:
    """How far what a device finds is from what the CPU finds.

    Attributes:
        quantity: what was compared.
        difference: |found - expected| / |expected|, Euclidean.
        tolerance: the most that is allowed.
    """

    quantity: str
    difference: float
    tolerance: float = TOLERANCE

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance; False for NaN."""
        return self.difference <= self.tolerance


def policy_parity(build: Callable[[str], metarl.Learner], device: str) -> list[Parity]:
    """Compare an inner step, the meta-gradient, a product of the KL's Hessian, and loss and KL, from the same episodes.

    Args:
        build: makes the learner on a device, with the same meta-parameters on each.
        device: to be compared with the CPU.
    """
    with build("cpu") as learner:
        sampling = learner.sampling
        tasks = learner.task_distribution.sample(sampling.num_tasks, keyed_generator(0, "parity"))
        path = learner.adapt(tasks, 1)
        expected = _of_policy(learner, path)
    with build(device) as other:
        found = _of_policy(other, [moved(at, device) for at in path])
    return [Parity(name, _difference(found[name], expected[name])) for name in expected]


def few_shot_parity(inner_steps: int, num_tasks: int, device: str) -> list[Parity]:
    """Compare the meta-gradient and the loss of MAML on the same random images."""
    learner = few_shot_learner("omniglot", inner_steps, num_tasks, "cpu")
    tasks = learner.sample(num_tasks, "train")
    expected = _of_images(learner.method, learner.theta, tasks, "cpu")
    found = _of_images(learner.method, learner.theta, tasks, device)
    steps = f"Omniglot, {inner_steps} inner step{'s' * (inner_steps > 1)}"
    return [Parity(f"{steps}: {name}", _difference(found[name], expected[name])) for name in expected]


def _of_policy(learner: metarl.Learner, path: list[AdaptationStep]) -> dict[str, Tensor]:
    adapted, _ = learner.inner_step(path[0].parameters, path[0].samples, 0)
    objective, vector = learner.objective(path), ravel(list(learner.theta.values()))
    _, gradient = objective.loss_and_gradient(vector)
    product = objective.kl_products(vector, 1.0, np.random.default_rng(0))
    further = vector - 0.01 * gradient / gradient.norm()
    return {
        "adapted parameters": ravel(list(adapted.values())),
        "meta-gradient": gradient,
        "Hessian-vector product": product(gradient),
        "loss and KL after a step": torch.stack(objective.evaluate(further)),
    }


def _of_images(method: metarl.Method, theta: Parameters, tasks: FewShotTasks, device: str) -> dict[str, Tensor]:
    there = {name: value.detach().to(device) for name, value in theta.items()}
    rows = {n: value.requires_grad_() for n, value in expand_over_tasks(there, len(tasks)).items()}
    support, query = (Examples(of.inputs.to(device), of.targets.to(device)) for of in (tasks.support, tasks.query))
    schedule = {name: torch.tensor(value, device=device) for name, value in method.schedule(0).items()}
    gradients, losses, _ = method.gradient(rows, FewShotTasks(support, query), schedule)
    return {"meta-gradient": ravel([value.sum(dim=0) for value in gradients.values()]), "losses": losses}


def moved(at: AdaptationStep, device: str) -> AdaptationStep:
    """With parameters and samples on the device, which is all that an objective needs."""
    tensors: Any = {name: value.to(device) for name, value in vars(at.samples).items() if isinstance(value, Tensor)}
    parameters = {name: value.to(device) for name, value in at.parameters.items()}
    return replace(at, parameters=parameters, samples=replace(at.samples, **tensors))


def _difference(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double().cpu(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())
