"""Less memory traffic in recorded operations: results are written over operands that nobody needs any more.

A recording makes new memory for every result, as a function without side effects must. Where an element-wise operation
is the last one that needs an operand of the same layout, its result may as well take the operand's place: the same
numbers from fewer bytes, which on a CPU is most of what such an operation costs.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

_ATEN = torch.ops.aten
_IN_PLACE: dict[Any, Any] = {  # operations, and those that overwrite their first operand
    _ATEN.add.Tensor: _ATEN.add_.Tensor,
    _ATEN.sub.Tensor: _ATEN.sub_.Tensor,
    _ATEN.mul.Tensor: _ATEN.mul_.Tensor,
    _ATEN.div.Tensor: _ATEN.div_.Tensor,
    _ATEN.neg.default: _ATEN.neg_.default,
    _ATEN.exp.default: _ATEN.exp_.default,
    _ATEN.tanh.default: _ATEN.tanh_.default,
    _ATEN.relu.default: _ATEN.relu_.default,
    _ATEN.rsqrt.default: _ATEN.rsqrt_.default,
    _ATEN.pow.Tensor_Scalar: _ATEN.pow_.Scalar,
}
# operations, those that write into a given tensor, and the name of that argument
_OVERWRITING: dict[Any, tuple[Any, str]] = {
    _ATEN.threshold_backward.default: (_ATEN.threshold_backward.grad_input, "grad_input"),
    _ATEN.tanh_backward.default: (_ATEN.tanh_backward.grad_input, "grad_input"),
    _ATEN.where.self: (_ATEN.where.self_out, "out"),
}
_COMMUTATIVE = (_ATEN.add.Tensor, _ATEN.mul.Tensor)


def reuse_buffers(recorded: GraphModule, tensors: Sequence[Tensor]) -> None:
    """Change a recording so that element-wise results overwrite operands of the same layout that are needed no more.

    Inputs, constants and outputs are never overwritten. The numbers are the same to the last bit.

    Args:
        recorded: operations without side effects, as `make_fx` records them. Its graph is changed, and has to be
            recompiled.
        tensors: that it is called with, for their layouts.
    """
    values = _values(recorded, tensors)
    nodes = list(recorded.graph.nodes)
    storages = {node: [_storage(tensor) for tensor in _tensors(values.get(node))] for node in nodes}
    last = _lifetimes(nodes, storages)
    place: dict[int, int] = {}  # storages of results, and those that they are written into

    def storage_of(node: Node) -> int:
        [storage] = storages[node]
        while storage in place:
            storage = place[storage]
        return storage

    for number, node in enumerate(nodes):
        operands = [argument for argument in node.args if isinstance(argument, Node)]
        for operand in _replaceable(node):
            storage = storage_of(operand)
            shared = any(other is not operand and storage_of(other) == storage for other in operands)
            if shared or last[storage] > number or not _same_layout(values[operand], values[node]):
                continue
            _overwrite(node, operand)
            own = storage_of(node)
            place[own], last[storage] = storage, last[own]
            break
    recorded.graph.lint()


def _values(recorded: GraphModule, tensors: Sequence[Tensor]) -> dict[Node, Any]:
    """What each operation returns, as tensors without memory that know whose storage they share."""
    with torch.no_grad():
        FakeTensorProp(recorded, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*tensors)
    return {node: node.meta["val"] for node in recorded.graph.nodes if "val" in node.meta}


def _lifetimes(nodes: Sequence[Node], storages: dict[Node, list[int]]) -> dict[int, int]:
    """The number of the last operation that needs each storage; of those of inputs and constants one beyond all."""
    number = {node: index for index, node in enumerate(nodes)}
    last: dict[int, int] = defaultdict(int)
    for node in nodes:
        needed = [len(nodes)] if node.op in ("placeholder", "get_attr") else [number[user] for user in node.users]
        for storage in storages[node]:
            last[storage] = max([last[storage], *needed])
    return last


def _replaceable(node: Node) -> list[Node]:
    """The operands that the operation could overwrite."""
    if node.target in _OVERWRITING or (node.target in _COMMUTATIVE and not node.kwargs):
        candidates = node.args[1:] if node.target is _ATEN.where.self else node.args
    else:
        candidates = node.args[:1] if node.target in _IN_PLACE else ()
    return [candidate for candidate in candidates if isinstance(candidate, Node)]


def _overwrite(node: Node, operand: Node) -> None:
    """Let the operation write its result over an operand."""
    if node.target in _OVERWRITING:
        node.target, name = _OVERWRITING[node.target]
        node.kwargs = {**node.kwargs, name: operand}
    else:
        if operand is not node.args[0]:
            node.args = (operand, node.args[0])
        node.target = _IN_PLACE[node.target]


def _same_layout(operand: Tensor, result: Tensor) -> bool:
    """Whether a result could lie where an operand lies; only of tensors in one piece."""
    alike = (operand.shape, operand.dtype, operand.device) == (result.shape, result.dtype, result.device)
    return alike and operand.is_contiguous() and result.is_contiguous()


def _tensors(value: Any) -> list[Tensor]:
    return [part for part in (value if isinstance(value, tuple | list) else [value]) if isinstance(part, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
