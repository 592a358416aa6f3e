"""Immediate dominators of a directed acyclic graph in one pass."""

from __future__ import annotations

from collections.abc import Sequence


def immediate_dominators(predecessors: Sequence[Sequence[int]]) -> list[int]:
    """The node through which every path from the root to a node last passes.

    In topological order, a node's immediate dominator is the lowest common ancestor of its
    predecessors in the dominator tree built so far. Each tree node keeps one long jump towards the
    root, so that an ancestor query takes O(log n) and long chains with far skips stay fast (the
    iterative algorithm of general graphs takes O(n) for each of these).

    Args:
        predecessors: For each node its predecessors, in topological order; node 0 is the root, and
            a node without predecessors is a child of the root.

    Returns:
        For each node its immediate dominator; the root's is the root.
    """
    n = len(predecessors)
    parent, jump, depth = [0] * n, [0] * n, [0] * n
    for node in range(1, n):
        operands = predecessors[node]
        above = operands[0] if operands else 0
        for operand in operands[1:]:
            above = _common_ancestor(above, operand, parent, jump, depth)
        parent[node] = above
        depth[node] = depth[above] + 1
        far = jump[above]
        equal_steps = depth[above] - depth[far] == depth[far] - depth[jump[far]]
        jump[node] = jump[far] if equal_steps else above
    return parent


def _common_ancestor(a: int, b: int, parent: list[int], jump: list[int], depth: list[int]) -> int:
    if depth[a] < depth[b]:
        a, b = b, a
    while depth[a] > depth[b]:
        a = jump[a] if depth[jump[a]] >= depth[b] else parent[a]
    while a != b:
        if jump[a] != jump[b]:
            a, b = jump[a], jump[b]
        else:
            a, b = parent[a], parent[b]
    return a
