"""Loops in which Python or kernel launches are the bottleneck: bare tensor operations, or one launch, instead."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from metarl.core.parameters import Parameters, call_per_task

_Captured = tuple[GraphModule, GraphModule]
_captured: WeakKeyDictionary[nn.Module, tuple[tuple, dict[tuple, _Captured]]] = WeakKeyDictionary()

_ALIASES = {
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.expand.default,
    torch.ops.aten.detach.default,
}
_one_at_a_time = threading.Lock()  # for recordings
_PATIENCE = 10  # calls before a recording is made, which takes as long as hundreds of them


def fingerprint(module: nn.Module) -> tuple:
    """What differs after a plain attribute, a buffer or a frozen parameter of the module has changed.

    A recording holds their values, so it serves as long as the fingerprint is the same.
    """
    plain: list[tuple[str, object]] = []
    tensors: list[Tensor] = list(module.parameters())
    for part in module.modules():
        values = {**vars(part), **part._buffers}
        plain += [(n, value) for n, value in values.items() if isinstance(value, bool | int | float | str)]
        tensors += [value for value in values.values() if isinstance(value, Tensor)]
    return (*plain, *((id(value), value._version) for value in tensors if not value.requires_grad))


class Recording:
    """A function of tensors that computes its own derivatives, if any: a faster one, after some calls.

    The operations are recorded once per shapes, derivatives included, and from then on replayed without graph or
    Python code. The recording is compared with the function itself when it is made, and must equal it to the last
    bit; a function that cannot be recorded runs as it is. So whatever the function depends on beside its tensors must
    not change: see `fingerprint`.

    Args:
        function: maps tensors to tensors that need no graph.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]]):
        self._function = function
        self._calls: dict[tuple, int] = {}
        self._recorded: dict[tuple, Callable[..., Sequence[Tensor]]] = {}

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """What the function returns."""
        key = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        if key in self._recorded:
            with torch.no_grad():
                return self._recorded[key](*tensors)
        found = self._function(*tensors)
        with _one_at_a_time:
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
            recorded.recompile()
            with torch.no_grad():
                found = recorded(*tensors)
        except Exception:  # whatever a stranger's module does that cannot be recorded
            return self._function
        return recorded if all(map(torch.equal, found, expected)) else self._function


def capture(module: nn.Module, parameters: Parameters, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a faster inputs -> call_per_task(module, parameters, inputs) for these shapes, without gradients.

    The operations are recorded once per shapes and `fingerprint` of the module. What does not depend on the inputs is
    computed here, once. Every capture is compared with the module itself on the inputs given, and must equal it to the
    last bit: a module that has changed since is recorded again, and one that cannot be recorded runs as it is.

    Args:
        module: as in `call_per_task`.
        parameters: (M, ...) tensors.
        inputs: (M, N, ...), an example.
    """
    plain = partial(call_per_task, module, parameters)
    expected = plain(inputs)
    now = fingerprint(module)
    made_of, known = _captured.get(module, (None, {}))
    if made_of != now:
        known = {}
        _captured[module] = now, known
    values = list(parameters.values())
    key = (inputs.shape, inputs.device, *(value.shape for value in values))
    for _ in range(2):
        try:
            if key not in known:
                known[key] = _record(module, parameters, inputs)
            prepare, run = known[key]
            replay = partial(run, *prepare(*values))
            if torch.equal(replay(inputs), expected):
                return replay
        except Exception:  # whatever a stranger's module does that cannot be recorded
            known.pop(key, None)
            return plain
        del known[key]
    return plain


def one_launch(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function of GPU tensors as a CUDA graph: its kernels are recorded once and then launched together.

    The outputs of a call hold until the next one. A function that cannot be recorded, or whose replay gives anything
    else than the function itself, runs as it is.

    Args:
        function: of tensors that keep their shapes, without decisions that depend on their values.
        inputs: an example.
    """
    fixed = [value.clone() for value in inputs]
    device = inputs[0].device
    try:
        current, side, graph = torch.cuda.current_stream(device), torch.cuda.Stream(device), torch.cuda.CUDAGraph()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            expected = function(*fixed)  # libraries allocate their workspaces at the first call
            graph.capture_begin()
            try:
                outputs = function(*fixed)
            finally:
                graph.capture_end()
        current.wait_stream(side)
        for output in outputs:
            output.zero_()  # so that only a replay that computes them can equal what is expected
        graph.replay()
        same = all(torch.allclose(found, value) for found, value in zip(outputs, expected, strict=True))
    except RuntimeError:
        return function
    if not same:
        return function

    def replay(*values: Tensor) -> tuple[Tensor, ...]:
        for place, value in zip(fixed, values, strict=True):
            place.copy_(value)
        graph.replay()
        return outputs

    return replay


def _record(module: nn.Module, parameters: Parameters, inputs: Tensor) -> _Captured:
    """Two graphs: parameters to what can be prepared, and that together with the inputs to the outputs."""

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


def _shape(node: Node) -> torch.Size:
    return node.meta["tensor_meta"].shape
