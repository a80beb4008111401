"""Recorded operations: loops in which Python is the bottleneck run bare tensor operations instead.

What is recorded belongs to one caller, who holds a copy of the module that nobody else changes. A recording is compared
with the function that it was made of, to the last bit, or within rounding where it is compiled; one that cannot be
made, or differs, is not used, and says so once.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from metarl.core.buffer_reuse import reuse_buffers
from metarl.core.parameters import Parameters, call_per_task

_ALIASES = {
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.expand.default,
    torch.ops.aten.detach.default,
}
_PATIENCE = 10  # calls before a recording is made, which takes as long as hundreds of them
_NEAR = 0.01  # of the largest number; rounding in five inner steps with second derivatives was 0.0015 at most


class RecordedFunction:
    """A function of tensors that computes its own derivatives, if any: a faster one, after ten calls.

    The operations are recorded once per layout of the tensors, derivatives included, and from then on replayed without
    graph or Python code. Whatever the function depends on beside its tensors must not change.

    Args:
        function: maps tensors to tensors that need no graph.
        name: of the function, for the warning that it cannot be recorded.
        compiled: whether the recording is made at the first call and compiled with TorchInductor, which fuses
            operations and rounds otherwise. It takes a minute and needs a C++ compiler, or Triton on a GPU.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], name: str, compiled: bool = False):
        self._function, self._name, self._compiled = function, name, compiled
        self._calls: dict[tuple, int] = {}
        self._recorded: dict[tuple, Callable[..., Sequence[Tensor]]] = {}
        self._lock = threading.Lock()

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Return what the function returns."""
        key = _layout(tensors)
        if self._compiled and key not in self._recorded:
            with self._lock:  # so that every call has the same numbers, whichever thread comes first
                if key not in self._recorded:
                    self._recorded[key] = self._record(tensors, self._function(*tensors))
        if (replay := self._recorded.get(key, self._function)) is not self._function:
            with torch.no_grad():
                return replay(*tensors)
        found = self._function(*tensors)
        if key in self._recorded:
            return found
        with self._lock:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] == _PATIENCE:
                self._recorded[key] = self._record(tensors, found)
        return found

    def _record(self, tensors: Sequence[Tensor], expected: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        try:
            recorded = make_fx(self._function)(*tensors)
            recorded.graph.eliminate_dead_code()
            for node in recorded.graph.nodes:
                if _is_alias(node):
                    node.replace_all_uses_with(node.all_input_nodes[0])
                    recorded.graph.erase_node(node)
            if not self._compiled:  # a compiler does that itself
                reuse_buffers(recorded, tensors)
            recorded.recompile()
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the compiler itself
                replay = torch.compile(recorded.forward, dynamic=False) if self._compiled else recorded
                found = replay(*tensors)
        except Exception as error:  # user code may raise anything
            cause = getattr(error, "inner_exception", error)  # of the compiler, which wraps it
            _warn(self._name, f"{type(cause).__name__}: {cause}")
            return self._function
        if all(map(_near if self._compiled else torch.equal, found, expected)):
            return replay
        _warn(self._name, "its recording gives other numbers")
        return self._function


class RecordedModule:
    """A module whose calls without gradients are recorded, once per layout of parameters and inputs.

    What does not depend on the inputs, such as transposed weights, is computed once per `bind`.

    Args:
        module: as in `call_per_task`; the caller's own, which does not change.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self._recorded: dict[tuple, tuple[GraphModule, GraphModule] | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_recorded": {}}  # a copy records anew

    def bind(self, parameters: Parameters, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a fast inputs -> call_per_task(module, parameters, inputs) for these shapes.

        It equals the module to the last bit on the inputs given, or is the module itself.

        Args:
            parameters: (M, ...) tensors.
            inputs: (M, N, ...), an example.
        """
        plain = partial(call_per_task, self._module, parameters)
        expected, values = plain(inputs), list(parameters.values())
        key = _layout([inputs, *values])
        if key not in self._recorded:
            self._recorded[key] = self._record(parameters, inputs)
        if (recorded := self._recorded[key]) is None:
            return plain
        prepare, run = recorded
        replay = partial(run, *prepare(*values))
        if torch.equal(replay(inputs), expected):
            return replay
        self._recorded[key] = None
        _warn(type(self._module).__name__, "its recording gives other numbers")
        return plain

    def _record(self, parameters: Parameters, inputs: Tensor) -> tuple[GraphModule, GraphModule] | None:
        try:
            return _split_recording(self._module, parameters, inputs)
        except Exception as error:  # user code may raise anything
            _warn(type(self._module).__name__, f"{type(error).__name__}: {error}")
            return None


def _layout(tensors: Sequence[Tensor]) -> tuple:
    """What a recording depends on beside numbers: shapes, and strides, as a view that suits some fails with others."""
    return tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors)


def _split_recording(module: nn.Module, parameters: Parameters, inputs: Tensor) -> tuple[GraphModule, GraphModule]:
    """Record two graphs: parameters to what can be prepared, and that together with the inputs to the outputs."""

    def call(inputs: Tensor, *values: Tensor) -> Tensor:
        return call_per_task(module, dict(zip(parameters, values, strict=True)), inputs)

    whole = make_fx(functionalize(call, remove="mutations"))(inputs, *parameters.values())
    nodes = list(whole.graph.nodes)
    result = nodes[-1].args[0]
    varying = {nodes[0]}
    for node in nodes:
        if varying.intersection(node.all_input_nodes):
            varying.add(node)
    prepared = [node for node in nodes if node not in varying and varying.intersection(node.users)]

    first = Graph()
    copies: dict[Node, Node] = {}
    for node in nodes:
        if node not in varying and node.op != "output":
            copies[node] = first.node_copy(node, copies.__getitem__)
    first.output(tuple(copies[node] for node in prepared))

    second = Graph()
    copies = {node: second.placeholder(f"prepared_{index}") for index, node in enumerate(prepared)}
    copies[nodes[0]] = second.placeholder("inputs")
    for node in nodes[1:-1]:
        if node in varying:
            source = node.all_input_nodes[0]
            copies[node] = copies[source] if _is_alias(node) else second.node_copy(node, copies.__getitem__)
    second.output(copies[result])
    return GraphModule(whole, first), GraphModule(whole, second)


def _is_alias(node: Node) -> bool:
    """Whether an operation returns its input."""
    return node.target in _ALIASES and _shape(node) == _shape(node.all_input_nodes[0])


def _near(found: Tensor, expected: Tensor) -> bool:
    return bool(((found - expected).abs().max() <= _NEAR * expected.abs().max()).item())


def _shape(node: Node) -> torch.Size:
    return node.meta["tensor_meta"].shape


def _warn(name: str, reason: str) -> None:
    first_line = reason.strip().split("\n")[0]
    warnings.warn(
        f"{name} cannot be recorded ({first_line}); it runs as it is, more slowly", RuntimeWarning, stacklevel=4
    )
