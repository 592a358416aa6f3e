"""Shapes, dtypes and costs of a graph that was changed, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fxelastic.ir.flops import node_flops


def propagate(module: fx.GraphModule, operands: Sequence[Any]) -> Any:
    """Derive each node's ``meta["val"]`` anew from those of the operands.

    Args:
        module: The graph, whose nodes' metadata is written.
        operands: Fake tensors, one for each placeholder; sizes may be symbolic.

    Returns:
        The fake result.

    Raises:
        Exception: Whatever an operator raises whose operands do not fit.
    """
    mode = next((v.fake_mode for v in operands if isinstance(v, FakeTensor)), None)
    mode = mode or FakeTensorMode()
    with mode, torch.no_grad():
        return _FakeRun(module, mode).run(*operands)


def graph_flops(module: fx.GraphModule) -> int:
    """Floating point operations of one sample; `propagate` has run."""
    return sum(node_flops(node) for node in module.graph.nodes)


def same_kind(one: Any, other: Any) -> bool:
    """Whether two fake tensors have the same shape, symbolic sizes included, and dtype."""
    return (
        isinstance(one, torch.Tensor)
        and isinstance(other, torch.Tensor)
        and one.dtype == other.dtype
        and sizes(one) == sizes(other)
    )


def sizes(value: torch.Tensor) -> tuple[int | str, ...]:
    """The sizes of a fake tensor; symbolic ones as texts, which compare without a guard."""
    return tuple(
        str(size.node.expr) if isinstance(size, torch.SymInt) else int(size) for size in value.shape
    )


class _FakeRun(fx.Interpreter):
    """Runs a graph over fake copies of its real weights."""

    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(module)
        self._mode = mode

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["val"] = result
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._fake(super().get_attr(target, args, kwargs))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module: nn.Module = self.fetch_attr(str(target))
        weights = {name: self._fake(p) for name, p in module.named_parameters()}
        weights |= {name: self._fake(b) for name, b in module.named_buffers()}
        return torch.func.functional_call(module, weights, args, kwargs)

    def _fake(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
            return value
        return self._mode.from_tensor(value, static_shapes=True)
