"""Parameters as data: a dict of tensors, as `torch.func.functional_call` takes them.

Meta-parameters theta have the module's own shapes; adapted parameters phi have a leading axis of M tasks. What else a
module holds, its buffers and frozen parameters, are constants: they stay in the module, and go into checkpoints.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metarl.core.parallel import own_copy

Parameters = dict[str, Tensor]


def parameters_of(module: nn.Module) -> Parameters:
    """Copy a module's parameters into a dict of tensors that are not part of any graph.

    Those that require no gradient are frozen and left out; ValueError if all are, or if a part of the module is in it
    twice: a functional call would leave the first call's tensors in the second one.
    """
    places: dict[nn.Module, str] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        if part in places and (*part.parameters(), *part.buffers()):
            raise ValueError(
                f"{type(module).__name__} holds the same {type(part).__name__} as {places[part]!r} and as {name!r}; "
                "allowed: once (two of them may share their parameters)"
            )
        places[part] = name
    found = {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}
    if not found:
        raise ValueError(f"{type(module).__name__} has no parameter that requires a gradient; allowed: at least one")
    return found


def constants_of(module: nn.Module) -> Parameters:
    """Copy a module's buffers and frozen parameters, those that `state_dict` holds."""
    learned = {name for name, value in module.named_parameters() if value.requires_grad}
    return {name: value.clone() for name, value in module.state_dict().items() if name not in learned}


def restore_constants(module: nn.Module, constants: Parameters | None) -> None:
    """Give a module the constants of another; ValueError if they are not like its own.

    None, from a file that knows none, leaves the module as it is.
    """
    if constants is None:
        return
    require_alike("buffers and frozen parameters", constants, constants_of(module))
    module.load_state_dict(constants, strict=False)


def own_module(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Return a copy of a module, on a device, that nobody else changes; ValueError for one that cannot be copied."""
    try:
        return copy.deepcopy(module).to(device)
    except Exception as error:  # user code may raise anything
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{type(module).__name__} cannot be copied ({reason}); allowed: a module that copy.deepcopy copies, "
            "so without tensors that are part of a graph"
        ) from error


def copied_to(values: Any, device: torch.device | str) -> Any:
    """Return copies on a device of the tensors in a dict, or in dicts of dicts."""
    if isinstance(values, dict):
        return {name: copied_to(value, device) for name, value in values.items()}
    return values.detach().clone().to(device)


def require_alike(kind: str, found: Any, own: Any) -> None:
    """ValueError unless what a state holds of a kind, tensors in a dict or in dicts of dicts, has our own shapes."""
    if (shapes := _shapes(found)) != (allowed := _shapes(own)):
        raise ValueError(f"the state holds the {kind} {shapes}; allowed: {allowed}")
    if (kinds := _nested(found, Tensor.is_floating_point)) != _nested(own, Tensor.is_floating_point):
        raise ValueError(f"the state holds the {kind} as other numbers than floating-point ones: {kinds}")


def _shapes(held: Any) -> Any:
    return _nested(held, lambda tensor: tuple(tensor.shape))


def _nested(held: Any, described: Callable[[Tensor], Any]) -> Any:
    """A description of each tensor in a dict, or in dicts of dicts; the type of anything else."""
    if isinstance(held, dict):
        return {name: _nested(value, described) for name, value in held.items()}
    return described(held) if isinstance(held, Tensor) else f"a {type(held).__name__}"


def expand_over_tasks(parameters: Parameters, tasks: int) -> Parameters:
    """Give every tensor a leading axis of M tasks, all rows equal, without copying."""
    return {name: value.expand(tasks, *value.shape) for name, value in parameters.items()}


def call_per_task(module: nn.Module, parameters: Parameters, inputs: Tensor) -> Tensor:
    """Apply the module once per task, as one batched computation.

    Args:
        parameters: with a leading axis of M tasks.
        inputs: (M, N, ...); the module sees one batch axis, of N.

    Returns:
        outputs (M, N, ...).
    """

    module = own_copy(module)

    def call(task_parameters: Parameters, task_inputs: Tensor) -> Tensor:
        return functional_call(module, task_parameters, (task_inputs,))

    return vmap(call)(parameters, inputs)


def ravel(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors into one flat vector, in their order."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unravel(vector: Tensor, like: Parameters) -> Parameters:
    """Cut a flat vector into a dict shaped as `like`; the inverse of `ravel(like.values())`."""
    pieces = vector.split([value.numel() for value in like.values()])
    return {name: piece.view_as(value) for (name, value), piece in zip(like.items(), pieces, strict=True)}
