"""Find the repeating modules that a slightly larger cap would keep whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import fx

from fxelastic.ir.block import OpenedModule
from fxelastic.passes.flow import Flow
from fxelastic.passes.packing import Pack
from fxelastic.passes.repeats import instance_path

#: Modules above this multiple of the cap are not worth a note: gamma was meant to open them.
_MOST = 1.25
_DIGITS = 3


def opened_modules(
    flow: Flow,
    packs: Sequence[Pack],
    gamma: float,
    n_params: int,
    repeating: frozenset[str],
    pack_at: Callable[[float], Sequence[Pack]],
) -> tuple[OpenedModule, ...]:
    """Find the repeating modules that are cut because they exceed the cap by a little.

    Args:
        flow: The classified graph.
        packs: The blocks.
        gamma: Their cap, as a share of the parameters.
        n_params: Parameters of the model.
        repeating: Instances of the repeating units.
        pack_at: Returns the blocks for another gamma.

    Returns:
        A note for each such module, in the order of the graph; its gamma has been tried.
    """
    members: dict[str, list[fx.Node]] = {}
    for node in flow.stream:
        if flow.parameters[node]:
            for key in instance_path(node):
                if key in repeating:
                    members.setdefault(key, []).append(node)
    cap = gamma * n_params
    packs_at: dict[float, Sequence[Pack]] = {}
    found = []
    for key, nodes in members.items():
        size = sum({k: n for node in nodes for k, n in flow.parameters[node].items()}.values())
        if not cap < size <= _MOST * cap or _is_whole(nodes, packs):
            continue
        larger = _rounded_up(size / n_params)
        if larger not in packs_at:
            packs_at[larger] = pack_at(larger)
        if _is_whole(nodes, packs_at[larger]):
            found.append(OpenedModule(key, size, size / cap - 1, larger))
    return tuple(found)


def _is_whole(nodes: Sequence[fx.Node], packs: Sequence[Pack]) -> bool:
    return any(not pack.glue and set(nodes) <= set(pack.nodes) for pack in packs)


def _rounded_up(share: float) -> float:
    """The share to three digits, never below it."""
    digits = _DIGITS - 1 - math.floor(math.log10(share))
    scale = 10.0**digits
    return min(1.0, round(math.ceil(share * scale - 1e-9) / scale, digits))
