"""Sums of task gradients over a chunk of tasks, as a function of tensors, recorded where it can be."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metarl.core.parameters import Parameters, expand_over_tasks, ravel
from metarl.core.recording import RecordedFunction
from metarl.few_shot.method import Method
from metarl.few_shot.tasks import FewShotTasks


class GradientSums:
    """The functions that add up task gradients, by what they were made of; a copy starts without any."""

    def __init__(self) -> None:
        self._recorded: dict[tuple, tuple[Method, RecordedFunction]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_recorded": {}}

    def of(
        self, method: Method, theta: Parameters, scheduled: tuple, tasks: FewShotTasks, compiled: bool = False
    ) -> Callable[..., Sequence[Tensor]]:
        """Return the function of tensors: meta-parameters, scheduled numbers, and tensors of tasks.

        It returns the sum of the tasks' gradients, as one vector in float64, and each task's loss and metric, (M,);
        none has a graph.

        Args:
            method: whose gradient it is; it does not change.
            theta: meta-parameters, for their names.
            scheduled: names of the scheduled numbers.
            tasks: a chunk, for the kind and the size of what it will be called with.
            compiled: whether the function is compiled.
        """
        template = tasks.like([tensor[:0].clone() for tensor in tasks.tensors])
        sums = partial(_gradient_sums, method, tuple(theta), scheduled, template)
        if method.shares_theta:
            return sums
        found = self._recorded.get(scheduled)
        if found is None or found[0] != method:
            found = method, RecordedFunction(sums, f"the meta-gradient of {type(method).__name__}", compiled)
            self._recorded[scheduled] = found
        return found[1]


def _gradient_sums(
    method: Method, names: tuple[str, ...], scheduled: tuple, template: FewShotTasks, *tensors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    first, second = len(names), len(names) + len(scheduled)
    detached = {name: value.detach() for name, value in zip(names, tensors[:first], strict=True)}
    schedule = dict(zip(scheduled, tensors[first:second], strict=True))
    tasks = template.like(tensors[second:])
    theta = {name: rows.requires_grad_() for name, rows in expand_over_tasks(detached, len(tasks)).items()}
    gradients, losses, metrics = method.gradient(theta, tasks, schedule)
    summed = [rows.detach().sum(dim=0, dtype=torch.float64) for rows in gradients.values()]
    return ravel(summed), losses.detach(), metrics.detach()
