"""Fill memory that a model takes without filling it.

What is written to it later makes no difference to the model. But a cut may come between two writes,
and what crosses it is then other numbers each time, NaN among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten
_FILLED: Mapping[Any, Any] = {
    _ATEN.empty.memory_format: _ATEN.zeros.default,
    _ATEN.empty_like.default: _ATEN.zeros_like.default,
    _ATEN.new_empty.default: _ATEN.new_zeros.default,
}


def fill_empty(graph: fx.Graph) -> None:
    """Have every operator that gives memory as it comes give zeros.

    Args:
        graph: A functional graph; changed in place.
    """
    for node in graph.nodes:
        filled = _FILLED.get(node.target)
        if filled is not None:
            node.target = filled
            known = {argument.name for argument in filled._schema.arguments}
            node.kwargs = {name: value for name, value in node.kwargs.items() if name in known}
