"""Loops in which Python or kernel launches are the bottleneck: a forward as bare operations, or as one launch."""

from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from metarl.parameters import Parameters, call_per_task

_Captured = tuple[GraphModule, GraphModule]
_captured: WeakKeyDictionary[nn.Module, dict[tuple, _Captured]] = WeakKeyDictionary()

_NOTHING_TO_DO = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.expand.default}


def capture(module: nn.Module, parameters: Parameters, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a faster inputs -> call_per_task(module, parameters, inputs) for these shapes, without gradients.

    The operations are recorded once per module and shapes. What does not depend on the inputs is computed here, once.
    Every capture is compared with the module itself on the inputs given, and must equal it to the last bit: a module
    that has changed since is recorded again, and one that cannot be recorded runs as it is.

    Args:
        module: as in `call_per_task`.
        parameters: (M, ...) tensors.
        inputs: (M, N, ...), an example.
    """
    plain = partial(call_per_task, module, parameters)
    expected = plain(inputs)
    known = _captured.setdefault(module, {})
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
    try:
        current, side, graph = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            expected = function(*fixed)  # libraries allocate their workspaces at the first call
            graph.capture_begin()
            try:
                outputs = function(*fixed)
            finally:
                graph.capture_end()
        current.wait_stream(side)
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

    whole = make_fx(call)(inputs, *parameters.values())
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
            same = node.target in _NOTHING_TO_DO and _shape(node) == _shape(node.all_input_nodes[0])
            copies[node] = copies[node.all_input_nodes[0]] if same else second.node_copy(node, copies.__getitem__)
    second.output(copies[result])
    return GraphModule(whole, first), GraphModule(whole, second)


def _shape(node: Node) -> torch.Size:
    return node.meta["tensor_meta"].shape
