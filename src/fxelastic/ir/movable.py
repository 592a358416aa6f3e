"""Graph modules whose operators follow the weights to another device.

Capture writes the model's device into operators that make a tensor from nothing:
``arange(n, device=x.device)`` in the model is ``arange(n, device='cpu')`` in the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate


class MovableGraphModule(fx.GraphModule):
    """A graph module that can be moved: ``to``, ``cuda`` and ``to_empty`` move all it computes."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MovableGraphModule:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        move_operators(self, fn)
        return self


def move_operators(module: fx.GraphModule, fn: Callable[[Tensor], Tensor]) -> None:
    """Have a graph's operators compute where a function moves its weights.

    Args:
        module: The graph module; changed in place. Its weights stay where they are.
        fn: What the weights are put through (`torch.nn.Module._apply`). It is tried on an empty
            tensor on each device of the graph.
    """
    moved: dict[torch.device, torch.device] = {}

    def follow(value: Any) -> Any:
        if not isinstance(value, torch.device):
            return value
        if value not in moved:
            moved[value] = fn(torch.empty(0, device=value)).device
        return moved[value]

    for node in module.graph.nodes:
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), follow)
    if any(old != new for old, new in moved.items()):
        module.recompile()
