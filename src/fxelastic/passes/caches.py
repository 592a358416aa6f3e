"""Find the caches of a decoder's step: past keys and values that results extend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxelastic.ir.operators import argument, is_tensor, operator_name


@dataclass(frozen=True)
class CacheNodes:
    """A cache of a captured graph.

    Attributes:
        past: The input.
        present: The result that is the past and the new elements behind it.
        dim: The dimension along which it grows.
    """

    past: fx.Node
    present: fx.Node
    dim: int


def find_caches(graph: fx.Graph) -> tuple[CacheNodes, ...]:
    """Find the inputs of varying length to which a result appends.

    Args:
        graph: A captured graph with fake tensors as ``meta["val"]``.

    Returns:
        The caches in the order of the results. Other operators read the present, too: a result
        that nothing in the model reads needs no place inside a block.
    """
    found: dict[fx.Node, CacheNodes] = {}
    (output,) = (node for node in graph.nodes if node.op == "output")
    for present in output.all_input_nodes:
        cache = _cache(present)
        if cache is not None and len(present.users) > 1:
            found.setdefault(cache.past, cache)
    return tuple(found.values())


def _cache(present: fx.Node) -> CacheNodes | None:
    if operator_name(present) != "aten.cat" or not is_tensor(present):
        return None
    parts: Any = present.args[0]
    past = parts[0]
    if past.op != "placeholder" or not is_tensor(past) or past in parts[1:]:
        return None
    value = present.meta["val"]
    dim = int(argument(present, 1, "dim", 0)) % value.dim()
    size: Any = past.meta["val"].shape[dim]
    grows = isinstance(size, torch.SymInt) and not size.node.expr.is_number
    like = past.meta["val"]
    return CacheNodes(past, present, dim) if grows and like.dtype == value.dtype else None
