"""Name the dimensions that a squeeze removes: those of size 1, and never the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten.squeeze


def name_squeezed_dimensions(graph: fx.Graph) -> None:
    """Rewrite squeezes as ``squeeze(dims)`` of what they remove, in place.

    Without dimensions, one drops the batch of a single sample, too. Exporters, which have to know
    how many dimensions there are, drop the others alone; so does the capture then. And a dimension
    that is named, but not of size 1, stays in torch, where ONNX refuses it.

    Args:
        graph: A functional graph.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (_ATEN.default, _ATEN.dim, _ATEN.dims):
            continue
        source, *named = node.args
        sizes = source.meta["val"].shape
        # A size that is an int was the same for every batch.
        ones = [i for i, size in enumerate(sizes) if isinstance(size, int) and size == 1]
        wanted = _wanted(named, len(sizes))
        dims = [i for i in ones if i in wanted]
        if not dims:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif dims != wanted:
            node.target, node.args = _ATEN.dims, (source, dims)


def _wanted(named: list[Any], n_dims: int) -> list[int]:
    """The dimensions that an operator names; all where it names none."""
    if not named:
        return list(range(n_dims))
    dims = named[0] if isinstance(named[0], (list, tuple)) else [named[0]]
    return sorted(dim % max(n_dims, 1) for dim in dims)
