"""Name a block the way its user would."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from fxelastic.passes.repeats import instance_path


def block_label(nodes: Sequence[fx.Node], path: tuple[str, ...], everything: dict[str, int]) -> str:
    """A name from the module calls that a block covers.

    Args:
        nodes: The block's stream operators.
        path: Calls of modules that hold all of them.
        everything: For each module call, how many stream operators it holds in the whole graph.

    Returns:
        The module's path where the block is all of a module call (``layer3.0``); else the range
        of its parts (``conv1..maxpool``, ``layer4.0.conv2..bn2``).
    """
    for depth in range(len(path), 0, -1):
        key = path[depth - 1]
        inside = sum(key in instance_path(node) for node in nodes)
        if inside == everything.get(key) == len(nodes):
            # The outermost call that is just this block: `layer1` rather than `layer1.0` only if
            # nothing but the container differs, so keep the innermost name that covers all.
            return key
    depth = len(path)
    parts = [_part(node, depth) for node in nodes]
    first, last = _first_named(parts), _first_named(parts[::-1])
    prefix = path[-1] if path else ""
    span = first if first == last else f"{first}..{last}"
    if not prefix:
        return span
    return f"{prefix}.{span}" if span else prefix


def _part(node: fx.Node, depth: int) -> str:
    """What a node is called inside the module call at ``depth``: a submodule's name, or its own."""
    keys = instance_path(node)
    if depth < len(keys):
        outer = keys[depth - 1].partition("@")[0] if depth else ""
        return keys[depth].removeprefix(f"{outer}.") if outer else keys[depth]
    return node.name


def _first_named(parts: list[str]) -> str:
    return parts[0]
