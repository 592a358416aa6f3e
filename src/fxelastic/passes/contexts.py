"""Arrange the context operators: into the block that needs them, or into segments of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from fxelastic.ir.operators import is_operator
from fxelastic.passes.flow import Flow
from fxelastic.passes.packing import Pack


@dataclass(frozen=True)
class ContextPlan:
    """Where each shared context operator goes.

    Attributes:
        segments: Connected context operators that become blocks of kind ``context``.
        absorbed: For a pack's index, context operators that only this pack needs.
    """

    segments: tuple[tuple[fx.Node, ...], ...]
    absorbed: Mapping[int, tuple[fx.Node, ...]]


def arrange_contexts(flow: Flow, packs: Sequence[Pack]) -> ContextPlan:
    """Divide the shared context operators into connected groups and place each."""
    home = {node: i for i, pack in enumerate(packs) for node in pack.nodes}
    owner = {node: home[reader] for reader, nodes in flow.attached.items() for node in nodes}
    segments: list[tuple[fx.Node, ...]] = []
    absorbed: dict[int, list[fx.Node]] = {}
    for group in _connected(flow.shared):
        inside = set(group)
        readers: set[int | None] = set()
        for node in group:
            for reader in node.users:
                if reader not in inside:
                    readers.add(home.get(reader, owner.get(reader)))
        target = readers.pop() if len(readers) == 1 else None
        has_parameters = any(flow.parameters[node] for node in group)
        if target is None or packs[target].glue or has_parameters:
            segments.append(group)
        else:
            absorbed.setdefault(target, []).extend(group)
    return ContextPlan(tuple(segments), {i: tuple(nodes) for i, nodes in absorbed.items()})


def _connected(nodes: Sequence[fx.Node]) -> list[tuple[fx.Node, ...]]:
    """Groups of operators that read one another, each in graph order, by their first member."""
    parent: dict[fx.Node, fx.Node] = {node: node for node in nodes}

    def find(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for node in nodes:
        for operand in node.all_input_nodes:
            if is_operator(operand) and operand in parent:
                parent[find(node)] = find(operand)
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        groups.setdefault(find(node), []).append(node)
    return [tuple(group) for group in groups.values()]
