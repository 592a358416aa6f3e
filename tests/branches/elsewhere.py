"""Computing a branch on a device that need not be there.

It runs on tensors without data that claim to be on another device, and torch refuses
operands of two devices. The device is one that no build of torch has code for: a build with CUDA
asks the driver for its recurrent layers, even without data, and fails where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxelastic.ir.graph_modules import move_operators

ELSEWHERE = torch.device("hpu", 0)
# torch has no implementation without data of a mask that is looked at.
NOT_WITHOUT_DATA = ("transformer_detects_causal",)


class Elsewhere(fx.Interpreter):
    """Runs a graph in a `FakeTensorMode`, on tensors that claim to be on another device."""

    def move(self, value: Any) -> Any:
        return _moved(value)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return pytree.tree_map(self.move, super().get_attr(target, args, kwargs))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(str(target))
        tensors = dict((*module.named_parameters(), *module.named_buffers()))
        moved = {name: self.move(value) for name, value in tensors.items()}
        return torch.func.functional_call(module, moved, args, kwargs)


def run_elsewhere(module: nn.Module, operands: Sequence[Any]) -> Any:
    """Move a module of any kind and its operands to the other device, and run it there.

    Args:
        module: The module; changed in place: its graphs compute elsewhere.
        operands: Tensors with data, and other values.

    Returns:
        Its result, without data.
    """
    for graph in graphs(module):
        move_operators(graph, claim)
        assert named(graph) <= {ELSEWHERE}
    with FakeTensorMode(), torch.no_grad():
        if isinstance(module, fx.GraphModule):
            run = Elsewhere(module)
            return run.run(*map(run.move, operands))
        weights = dict((*module.named_parameters(), *module.named_buffers()))
        moved = {name: _moved(value) for name, value in weights.items()}
        return torch.func.functional_call(module, moved, tuple(map(_moved, operands)))


def _moved(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty(value.shape, dtype=value.dtype, device=ELSEWHERE)


def claim(value: Tensor) -> Tensor:
    """What ``.to(ELSEWHERE)`` gives, without such a device."""
    with FakeTensorMode():
        return torch.empty(value.shape, dtype=value.dtype, device=ELSEWHERE)


def named(module: fx.GraphModule) -> set[torch.device]:
    """The devices that a graph names."""
    found: set[torch.device] = set()
    for node in module.graph.nodes:
        found |= {v for v in pytree.tree_leaves(node.args) if isinstance(v, torch.device)}
        found |= {v for v in pytree.tree_leaves(node.kwargs) if isinstance(v, torch.device)}
    return found


def graphs(module: nn.Module) -> list[fx.GraphModule]:
    return [part for part in module.modules() if isinstance(part, fx.GraphModule)]
