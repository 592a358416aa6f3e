"""Replace in-place operators by their functional form.

A block's value may be cached, compared with a teacher or read by another block, so no operator may
write to it. The common cases (``relu_``, ``add_`` on a fresh value) are rewritten one by one.
Writes through a view (``x[:, 0] = 0``) need torch's functionalisation, which traces the program
again and takes as long as the capture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxelastic.ir.operators import is_tensor, mutated_operands


def functionalise_simple(graph: fx.Graph) -> bool:
    """Rewrite in-place operators whose writes no other operator reads through a view.

    Args:
        graph: The graph, changed in place; partly changed if the result is False.

    Returns:
        Whether the graph is now functional.
    """
    position = {node: i for i, node in enumerate(graph.nodes)}
    try:
        memory = _memory(graph)
    except NotImplementedError:
        # Results of torch.func.vmap have no storage; torch's functionalisation handles them.
        return False
    sharers = _sharers(memory)
    for node in list(graph.nodes):
        written = list(mutated_operands(node))
        if not written:
            continue
        target = _functional(node)
        if target is None or len(written) != 1 or node.args[0] is not written[0]:
            return False
        value = written[0]
        if value.op == "get_attr" or not _only_reader(
            node, value, sharers[memory[value]], position
        ):
            return False
        with graph.inserting_before(node):
            new = graph.create_node(
                "call_function", target, node.args, node.kwargs, name=target._opname
            )
        new.meta = dict(node.meta)
        if not _same_kind(new, value):
            return False
        position[new] = position[node]
        # Views of the operator's result were traced as views of the old memory.
        memory[new] = memory[value]
        sharers[memory[new]].append(new)
        node.replace_all_uses_with(new)
        for reader in list(value.users):
            if reader not in (node, new) and position[reader] > position[node]:
                reader.replace_input_with(value, new)
        graph.erase_node(node)
    return True


def _memory(graph: fx.Graph) -> dict[fx.Node, int]:
    """For each tensor node, an identifier of its memory, which its views share."""
    return {
        node: node.meta["val"].untyped_storage()._cdata for node in graph.nodes if is_tensor(node)
    }


def _sharers(memory: dict[fx.Node, int]) -> dict[int, list[fx.Node]]:
    result: dict[int, list[fx.Node]] = {}
    for node, identifier in memory.items():
        result.setdefault(identifier, []).append(node)
    return result


def _only_reader(
    node: fx.Node, value: fx.Node, sharers: list[fx.Node], position: dict[fx.Node, int]
) -> bool:
    """Whether no earlier view of the same memory is read after ``node`` wrote to it."""
    here = position[node]
    return not any(
        position[reader] > here
        for other in sharers
        if other is not value and position[other] < here
        for reader in other.users
    )


def _functional(node: fx.Node) -> torch._ops.OpOverload | None:
    """``aten.relu.default`` for ``aten.relu_.default``."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return None
    name = target._opname
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(getattr(torch.ops, target.namespace), name[:-1], None)
    overload = getattr(packet, target._overloadname, None) if packet else None
    if not isinstance(overload, torch._ops.OpOverload) or overload._schema.is_mutable:
        return None
    return overload


def _same_kind(new: fx.Node, value: fx.Node) -> bool:
    """Whether the functional operator gives the shape and dtype of the in-place one."""

    def fake(operand: Any) -> Any:
        return operand.meta["val"]

    before = value.meta["val"]
    try:
        args, kwargs = fx.map_arg(new.args, fake), fx.map_arg(new.kwargs, fake)
        with before.fake_mode:
            after = new.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # noqa: BLE001  # without a fake kernel, torch's functionalisation handles it
        return False
    new.meta["val"] = after
    return bool(after.dtype == before.dtype and tuple(after.shape) == tuple(before.shape))
