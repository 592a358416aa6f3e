"""Place the context operators: in the block that needs them, or in blocks of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx
from torch import fx

from fxelastic.ir.operators import is_operator, is_tensor
from fxelastic.passes.flow import Flow
from fxelastic.passes.packing import FindRule, Pack


@dataclass(frozen=True)
class ContextPlan:
    """The place of each shared context operator.

    Attributes:
        segments: Connected context operators that become blocks of kind ``context``.
        absorbed: For a pack's index, the context operators that only this pack needs.
    """

    segments: tuple[tuple[fx.Node, ...], ...]
    absorbed: Mapping[int, tuple[fx.Node, ...]]


def arrange_contexts(flow: Flow, packs: Sequence[Pack], find_rule: FindRule) -> ContextPlan:
    """Place each shared context operator.

    Operators that only one block needs move into it, so that a table computed once (cosines)
    crosses the boundary, not each layer's view of it. Parameters stay outside because of the cap.
    """
    home = {node: i for i, pack in enumerate(packs) for node in pack.nodes}
    for reader, nodes in flow.attached.items():
        home.update(dict.fromkeys(nodes, home[reader]))
    absorbed: dict[int, list[fx.Node]] = {}
    kept: list[fx.Node] = []
    for node in reversed(flow.shared):
        targets = {home.get(reader) for reader in node.users}
        target = targets.pop() if len(targets) == 1 else None
        movable = is_tensor(node) and not _takes_apart(node) and not flow.parameters[node]
        movable = movable and not any(_is_fused(o, node, find_rule) for o in node.all_input_nodes)
        if target is None or packs[target].glue or not movable:
            kept.append(node)
        else:
            home[node] = target
            absorbed.setdefault(target, []).append(node)
    return ContextPlan(
        tuple(_connected(kept[::-1])),
        {i: tuple(reversed(nodes)) for i, nodes in absorbed.items()},
    )


def _is_fused(operand: fx.Node, node: fx.Node, find_rule: FindRule) -> bool:
    if not is_operator(operand) or len(operand.users) > 1:
        return False
    rule = find_rule(operand, node)
    return rule is not None and not rule.soft


def _takes_apart(node: fx.Node) -> bool:
    """Whether the node selects one of several results, which can't cross a boundary."""
    return any(is_operator(o) and not is_tensor(o) for o in node.all_input_nodes)


def _connected(nodes: Sequence[fx.Node]) -> list[tuple[fx.Node, ...]]:
    """Groups of operators that read one another, each in graph order, by their first member."""
    position = {node: i for i, node in enumerate(nodes)}
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(nodes)))
    for i, node in enumerate(nodes):
        graph.add_edges_from((position[o], i) for o in node.all_input_nodes if o in position)
    groups = networkx.connected_components(graph)
    return [tuple(nodes[i] for i in sorted(group)) for group in groups]
