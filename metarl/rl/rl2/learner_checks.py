"""What a learner of RL^2 refuses, each in one line that says what is allowed."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metarl.core.errors import first_line
from metarl.core.validation import require, require_whole
from metarl.rl.action_distributions import ActionDistribution
from metarl.rl.advantages import Advantages
from metarl.rl.learner_checks import check_bounds_penalty
from metarl.rl.rl2.policies import input_size
from metarl.rl.rl2.ppo import TrialPPO
from metarl.rl.sampler import Sampling
from metarl.rl.task_distribution import protocol_defects

if TYPE_CHECKING:
    from metarl.rl.rl2.learner import RL2Learner

WITHOUT_EFFECT = ("support_lambda", "bootstrap", "baseline", "weighting")  # of the settings of advantages
_STEPS = 3
_TOLERANCE = 1e-4  # of outputs in one pass and step by step, which are rounded otherwise


def check_parts(learner: "RL2Learner") -> None:
    """ValueError for a part that is no such part, or that RL^2 cannot use."""
    for name, kind in (("sampling", Sampling), ("advantages", Advantages), ("ppo", TrialPPO)):
        if not isinstance(given := getattr(learner, name), kind):
            raise ValueError(f"{name} = {given!r}; allowed: a {kind.__module__}.{kind.__name__}")
    require(learner.sampling.budget == "episodes", "budget", learner.sampling.budget, "episodes, with RL^2")
    require(learner.sampling.lanes == 0, "lanes", learner.sampling.lanes, "0, with RL^2")
    usual = Advantages()
    for name in WITHOUT_EFFECT:
        given, allowed = getattr(learner.advantages, name), getattr(usual, name)
        require(given == allowed, name, given, f"{allowed}, for it has no effect with RL^2")
    require_whole("threads", learner.threads)
    if learner.task_chunk is not None:
        require_whole("task_chunk", learner.task_chunk)
    require(learner.processes.world_size == 1, "processes", learner.processes.world_size, "one, with RL^2")
    if defects := protocol_defects(learner.task_distribution, learner.sampling.num_tasks):
        raise ValueError(defects[0])
    check_bounds_penalty(learner.advantages, learner.task_distribution.action_space)


def check_policy(learner: "RL2Learner", action_distribution: ActionDistribution) -> None:
    """ValueError for a policy that has another signature, or whose outputs in one pass are not those step by step."""
    policy, kind = learner.policy, type(learner.policy).__name__
    size = input_size(learner.task_distribution.observation_space, learner.task_distribution.action_space)
    inputs = torch.randn(2, _STEPS, size, generator=torch.Generator().manual_seed(0)).to(learner.device)
    shapes = [(2, _STEPS, action_distribution.parameter_size), (2, _STEPS)]
    expected = (
        f"three tensors: {shapes[0]}, {action_distribution.meaning}; {shapes[1]}, values; and the memory (2, ...)"
    )
    try:
        whole = policy(inputs, None)
        learned = [value for value in policy.parameters() if value.requires_grad]
        torch.autograd.grad(whole[0].sum() + whole[1].sum(), learned, materialize_grads=True)
        steps = _step_by_step(policy, inputs)
    except Exception as error:  # user code may raise anything
        raise ValueError(
            f"the policy {kind} cannot go through inputs {tuple(inputs.shape)} ({first_line(error)}); "
            f"allowed: {expected}"
        ) from error
    if not _has_shapes(whole, shapes):
        found = ", ".join(str(tuple(part.shape)) for part in whole)
        raise ValueError(f"the policy {kind} maps inputs {tuple(inputs.shape)} to {found}; allowed: {expected}")
    if not all(torch.allclose(a, b, atol=_TOLERANCE, rtol=_TOLERANCE) for a, b in zip(whole, steps, strict=True)):
        raise ValueError(
            f"the policy {kind} gives other outputs in one pass than step by step; allowed: one whose outputs depend "
            "on the memory and on earlier inputs of the same trial alone, without chance"
        )


def _step_by_step(policy: Any, inputs: Tensor) -> list[Tensor]:
    memory: Any = None
    outputs = []
    for step in range(inputs.shape[1]):
        dist_params, values, memory = policy(inputs[:, step : step + 1], memory)
        outputs.append((dist_params, values))
    return [*(torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True)), memory]


def _has_shapes(outputs: Any, shapes: list[tuple[int, ...]]) -> bool:
    *heads, memory = outputs
    found = [tuple(head.shape) for head in heads]
    return found == shapes and memory.ndim > 1 and len(memory) == shapes[0][0]
