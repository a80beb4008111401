"""What a learner refuses, each in one line that says what is allowed."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from gymnasium.spaces import Box, Space
from torch import Tensor

from metarl.core.errors import NonFiniteError, first_line
from metarl.core.parameters import Parameters, call_per_task, expand_over_tasks, require_alike
from metarl.core.validation import require_part, require_whole
from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.advantages import Advantages
from metarl.rl.baseline import require_baseline
from metarl.rl.estimators import WITH_SAMPLING
from metarl.rl.learner_state import LearnerState
from metarl.rl.outer import Reptile
from metarl.rl.quick_checks import quick_check
from metarl.rl.sampler import Sampling
from metarl.rl.task_distribution import TaskDistribution, protocol_defects

if TYPE_CHECKING:
    from metarl.rl.learner import Learner


def check_parts(learner: "Learner") -> None:
    """ValueError for a part that is no such part, or a task distribution that cannot be used."""
    for name, kind in (("sampling", Sampling), ("advantages", Advantages)):
        if not isinstance(given := getattr(learner, name), kind):
            raise ValueError(f"{name} = {given!r}; allowed: a metarl.{kind.__name__}")
    require_part("rule", learner.rule, "meta_parameters", "metarl.GradientDescent(0.1)")
    require_part("outer", learner.outer, "update", "metarl.TRPO()")
    require_part("estimator", learner.estimator, "__call__", "metarl.rl.estimators.lvc")
    require_whole("threads", learner.threads)
    if learner.task_chunk is not None:
        require_whole("task_chunk", learner.task_chunk)
    num_tasks, ranks = learner.sampling.num_tasks, learner.processes.world_size
    if defects := protocol_defects(learner.task_distribution, num_tasks):
        raise ValueError(defects[0])
    if num_tasks < ranks:
        raise ValueError(f"num_tasks = {num_tasks} on {ranks} processes; allowed: one or more on each")
    numbers = int(np.prod(learner.task_distribution.observation_space.shape or ()))
    samples = learner.sampling.episodes_per_task * learner.task_distribution.horizon
    require_baseline(learner.advantages.baseline, numbers, samples)
    check_bounds_penalty(learner.advantages, learner.task_distribution.action_space)


def check_bounds_penalty(advantages: Advantages, action_space: Space) -> None:
    """ValueError for a penalty beyond bounds that actions do not have."""
    bounded = isinstance(action_space, Box) and np.isfinite([action_space.low, action_space.high]).any()
    if advantages.bounds_penalty and not bounded:
        raise ValueError(
            f"bounds_penalty = {advantages.bounds_penalty} with actions without bounds, {action_space}; allowed: 0"
        )


def warn_of_defects(task_distribution: TaskDistribution) -> None:
    """Warn of what a task distribution lacks without being of no use, such as a task parameter that changes nothing."""
    for defect in quick_check(task_distribution):
        name = type(task_distribution).__name__
        warnings.warn(f"{name}: {defect} (metarl.check.check examines it further)", UserWarning, stacklevel=5)


def check_combination(learner: "Learner", theta: Parameters) -> None:
    """ValueError for settings that have no effect together, or would leave a part of theta as it is."""
    inner_steps, reptile = learner.rule.inner_steps, isinstance(learner.outer, Reptile)
    if learner.initial_sampling:
        if learner.estimator in WITH_SAMPLING:
            raise ValueError(
                f"initial_sampling = True with the estimator {learner.estimator.__name__}, which holds part of that "
                "term; allowed: score"
            )
        if learner.advantages.weighting != "timestep":
            weighting = learner.advantages.weighting
            raise ValueError(f"initial_sampling = True with weighting = {weighting!r}; allowed: timestep")
        if reptile or not inner_steps:
            raise ValueError("initial_sampling = True without a gradient through inner steps; allowed: False")
    if learner.multi_step and (reptile or inner_steps < 2):
        raise ValueError("multi_step = True without a gradient through two inner steps or more; allowed: False")
    if learner.multi_step and learner.initial_sampling:
        raise ValueError("multi_step = True with initial_sampling = True; allowed: one of them")
    start = learner.rule.start(expand_over_tasks(theta, 1))
    if not inner_steps:
        if reptile:
            raise ValueError(f"outer = {learner.outer} learns nothing without inner steps; allowed: at least 1")
        if unused := set(theta).difference(start):
            raise ValueError(f"inner_steps = 0 would leave {min(unused)} as it is; allowed: at least 1")
    if reptile and (fixed := set(theta).difference(learner.rule.adapted_names(start))):
        raise ValueError(
            f"outer = {learner.outer} would leave {min(fixed)} as it is; allowed: with a rule that adapts all, "
            "such as metarl.GradientDescent(0.1)"
        )


def check_policy(learner: "Learner", action_distribution: ActionDistribution, theta: Parameters) -> None:
    """ValueError for a policy that cannot act for a batch of tasks, or cannot be differentiated as learning needs."""
    shape = learner.task_distribution.observation_space.shape or ()
    seen, size = (2, *shape), action_distribution.parameter_size
    kind = type(learner.policy).__name__
    expected = f"{(2, size)}, {action_distribution.meaning}"
    inputs = torch.zeros(1, *seen, device=learner.device, dtype=torch.float32)
    phi = learner.rule.start(expand_over_tasks(theta, 1))
    phi = {name: value.detach().clone().requires_grad_() for name, value in phi.items()}
    try:
        output = call_per_task(learner.policy, phi, inputs)
    except Exception as error:  # user code may raise anything
        raise ValueError(
            f"the policy {kind} cannot map observations {seen} for a batch of tasks ({first_line(error)}); allowed: "
            f"what torch.func.vmap can do, in float32, without chance, and one tensor {expected}"
        ) from error
    if not isinstance(output, Tensor) or output.shape != (1, 2, size):
        found = f"shape {tuple(output.shape[1:])}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"the policy maps observations {seen} to {found}; allowed: one tensor {expected}")
    try:
        _differentiate_twice(output, phi)
        again = call_per_task(learner.policy, phi, inputs)
    except Exception as error:  # user code may raise anything
        raise ValueError(
            f"the policy {kind} cannot be called and differentiated twice ({first_line(error)}); allowed: operations "
            "that torch.autograd can differentiate twice, and no tensor kept from one call to the next"
        ) from error
    if not torch.equal(output, again):
        raise ValueError(
            f"the policy {kind} gives other outputs in a second call; allowed: one without state or chance"
        )


def _differentiate_twice(output: Tensor, phi: Parameters) -> None:
    values = list(phi.values())
    first = torch.autograd.grad(output.square().sum(), values, create_graph=True, materialize_grads=True)
    total = torch.stack([gradient.square().sum() for gradient in first]).sum()
    torch.autograd.grad(total, values, materialize_grads=True)  # an error too where the first ones carry no graph


def check_state(state: LearnerState, own: LearnerState) -> None:
    """ValueError unless names and shapes in a state are those of a learner's own."""
    require_alike("parameters", state.theta, own.theta)
    require_alike("state of the outer optimiser", state.outer, own.outer)
    require_whole("iteration", state.iteration, at_least=0)
    require_whole("env_steps", state.env_steps, at_least=0)


def check_finite_parameters(phi: Parameters, inner_step: int, first_task: int) -> None:
    """NonFiniteError, naming the first task whose parameters after an inner step are not finite."""
    finite = torch.stack([value.reshape(len(value), -1).isfinite().all(dim=1) for value in phi.values()]).all(dim=0)
    if not finite.all():
        task = first_task + int(finite.logical_not().nonzero()[0])
        raise NonFiniteError(f"the parameters of task {task} after inner step {inner_step + 1} are not finite")
