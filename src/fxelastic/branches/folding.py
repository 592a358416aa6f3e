"""Folding: weights that a block computes from its parameters become parameters themselves.

Parametrisations (weight norm, spectral norm, pruning masks), merged adapters (LoRA, DoRA) and
layers that scale their weight compute it in every call, though no input changes it. A branch has
weights of its own, so it can hold the result. Its channels can then be pruned, its outer layers
retargeted and its last map calibrated like those of a plain layer.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxelastic.ir.operators import (
    MATRIX_OPERATORS,
    NORMS,
    attribute,
    is_idle_dropout,
    operator_name,
)

#: Operators with weights. The operands of an attention are values, though a learned query can be
#: constant.
_WEIGHTED = (MATRIX_OPERATORS | NORMS) - {"aten.scaled_dot_product_attention"} | {
    "aten.embedding",
    "aten.embedding_bag",
    "aten.prelu",
}
#: Where torch keeps the parameters behind a parametrised tensor.
_PARAMETRIZATIONS = "parametrizations."


@dataclass(frozen=True, eq=False)
class Folded:
    """The value of a computed weight.

    Attributes:
        value: The weight: a parameter if a parameter is among its operands, else a tensor.
        target: A dotted name for it, in the module of the parameters that it depends on.
    """

    value: Tensor
    target: str


def folded_weights(module: fx.GraphModule, nodes: Sequence[fx.Node]) -> dict[fx.Node, Folded]:
    """Compute the weights that operators compute from parameters and buffers alone.

    A weight is an operand of a matrix operator, norm or embedding. Views (a transpose, a part of a
    packed weight) are not folded, nor are weights larger than the parameters they depend on.

    Args:
        module: Holds the parameters and buffers; it is not changed.
        nodes: Operators of its graph, in order.

    Returns:
        Operator → its result, for each operator whose result is a weight.
    """
    held = _held(module, nodes)
    found: dict[fx.Node, Folded] = {}
    for reader in nodes:
        if reader in held or operator_name(reader) not in _WEIGHTED:
            continue
        for operand in reader.all_input_nodes:
            node = _computed_weight(operand, held)
            if node is not None and node not in found:
                weight = _fold(module, node, held, _role(reader, operand))
                if weight is not None:
                    found[node] = weight
    return found


def _held(module: fx.GraphModule, nodes: Sequence[fx.Node]) -> dict[fx.Node, None]:
    """The operators that depend on no input, whose results are the same in every call."""
    held: dict[fx.Node, None] = {}
    for node in nodes:
        if node.op != "call_function" or not _is_deterministic(node):
            continue
        if all(operand in held or _is_tensor(module, operand) for operand in node.all_input_nodes):
            held[node] = None
    return held


def _is_deterministic(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return not node.all_input_nodes  # arithmetic on numbers
    if is_idle_dropout(node):
        return True
    return torch.Tag.nondeterministic_seeded not in node.target.tags


def _is_tensor(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "get_attr" and isinstance(attribute(module, str(node.target)), Tensor)


def _computed_weight(operand: fx.Node, held: dict[fx.Node, None]) -> fx.Node | None:
    """The tensor to fold for a weight.

    Returns:
        The operand itself, or a tensor that it is a view of; None if nothing is computed.
    """
    views: list[fx.Node] = []
    while operand in held:
        views.append(operand)
        if not _is_view(operand):
            break
        operand = operand.all_input_nodes[0]
    else:
        return None
    found = None
    for node in reversed(views):
        if isinstance(node.meta.get("val"), Tensor):
            if found is not None and node.meta["val"].numel() != found.meta["val"].numel():
                return found
            found = node
        if found is not None and len(node.users) > 1:
            return found
    return found


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    if not node.all_input_nodes or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if operator_name(node) == "aten.clone":
        return True
    aliases = (argument.alias_info for argument in node.target._schema.arguments)
    return any(alias is not None and not alias.is_write for alias in aliases)


def _fold(
    module: fx.GraphModule, node: fx.Node, held: dict[fx.Node, None], role: str
) -> Folded | None:
    """The weight that a node computes; None if it is larger than its operands."""
    needed = _needed(node, held)
    targets = dict.fromkeys(
        str(operand.target)
        for n in needed
        for operand in n.all_input_nodes
        if operand.op == "get_attr"
    )
    tensors = {target: attribute(module, target) for target in targets}
    learned = [t for t in tensors.values() if isinstance(t, nn.Parameter)]
    operands: Any = learned or list(tensors.values())
    size = sum(tensor.numel() for tensor in {id(t): t for t in operands}.values())
    shape: Any = node.meta["val"]
    if shape.numel() > size or not (shape.is_floating_point() or shape.is_complex()):
        return None
    value = _computed(module, node, needed)
    return Folded(nn.Parameter(value) if learned else value, _name(list(tensors), role))


def _needed(node: fx.Node, held: dict[fx.Node, None]) -> list[fx.Node]:
    """The nodes that compute a node, in order."""
    seen, pending = {node}, [node]
    while pending:
        for operand in pending.pop().all_input_nodes:
            if operand in held and operand not in seen:
                seen.add(operand)
                pending.append(operand)
    return [other for other in held if other in seen]


def _computed(module: fx.GraphModule, node: fx.Node, needed: Sequence[fx.Node]) -> Tensor:
    values: dict[fx.Node, Any] = {}

    def value_of(operand: fx.Node) -> Any:
        if operand not in values:
            values[operand] = attribute(module, str(operand.target))
        return values[operand]

    with torch.no_grad():
        for other in needed:
            args, kwargs = fx.map_arg((other.args, other.kwargs), value_of)
            assert callable(other.target)
            values[other] = other.target(*args, **kwargs)
    result: Tensor = values[node].detach()
    return result.clone(memory_format=torch.contiguous_format)


def _role(reader: fx.Node, operand: fx.Node) -> str:
    """The reader's name for its operand: ``weight`` or ``bias``."""
    assert isinstance(reader.target, torch._ops.OpOverload)
    names = (argument.name for argument in reader.target._schema.arguments)
    given = [*zip(names, reader.args, strict=False), *reader.kwargs.items()]
    found = (name for name, value in given if value is operand)
    return "bias" if next(found, "") == "bias" else "weight"


def _name(targets: Sequence[str], role: str) -> str:
    """A name in the innermost module that contains all targets: ``conv.weight``."""
    paths = [target.partition(_PARAMETRIZATIONS)[0].split(".")[:-1] for target in targets]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return ".".join((*(part for part, *_ in shared), role))
