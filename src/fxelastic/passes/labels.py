"""Name a block the way its user would."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import fx

from fxelastic.passes.repeats import instance_path

_COUNTER = re.compile(r"_\d+$")


def block_label(
    nodes: Sequence[fx.Node],
    path: tuple[str, ...],
    unit: str | None,
    sizes: Mapping[str, int],
) -> str:
    """A name from the module calls that a block covers.

    Names hold no running numbers of the graph, so that a change elsewhere doesn't rename a block.

    Args:
        nodes: The block's stream operators.
        path: Calls of modules that hold all of them, outermost first.
        unit: The repeating unit the block belongs to, if any.
        sizes: For each module call, how many stream operators it holds in the whole graph.

    Returns:
        The module's path where the block is all of a module call (``layer3.0``); else the range
        of its parts (``conv1..maxpool``, ``layer4.0.conv2..bn2``).
    """
    covered = [key for key in path if sizes.get(key) == len(nodes)]
    if unit in covered:
        return str(unit)
    if covered:
        return covered[0]
    inside: dict[str, int] = {}
    for node in nodes:
        for key in instance_path(node)[len(path) :]:
            inside[key] = inside.get(key, 0) + 1
    prefix = path[-1].partition("@")[0] if path else ""
    first, last = (_part(node, len(path), inside, sizes, prefix) for node in (nodes[0], nodes[-1]))
    span = first if first == last else f"{first}..{last}"
    return f"{path[-1]}.{span}" if path else span


def _part(
    node: fx.Node, depth: int, inside: Mapping[str, int], sizes: Mapping[str, int], prefix: str
) -> str:
    """The outermost call inside ``prefix`` that the block covers and the node is in."""
    keys = instance_path(node)[depth:]
    for key in keys:
        if inside[key] == sizes[key]:
            return _relative(key, prefix)
    operator = _COUNTER.sub("", node.name)
    return f"{_relative(keys[-1], prefix)}.{operator}" if keys else operator


def _relative(key: str, prefix: str) -> str:
    return key.removeprefix(f"{prefix}.") if prefix else key
