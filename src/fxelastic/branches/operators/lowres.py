"""Low resolution: a convolutional block at half the height and width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxelastic.branches.interval import NoBranchError, intervals
from fxelastic.branches.propagation import sizes
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.operators import CONVOLUTIONS, operator_name
from fxelastic.ir.partition import Partition

_ATEN = torch.ops.aten
_POOLINGS = {1: _ATEN.avg_pool1d.default, 2: _ATEN.avg_pool2d.default, 3: _ATEN.avg_pool3d.default}
_UPSAMPLINGS = {
    1: _ATEN.upsample_nearest1d.vec,
    2: _ATEN.upsample_nearest2d.vec,
    3: _ATEN.upsample_nearest3d.vec,
}


@dataclass(frozen=True)
class LowRes:
    """Each convolutional block between a pooling by two and an enlargement to its own size.

    Source: AdaScale, section III-A1, resolution scaling.
    """

    def make(self, partition: Partition, seed: int = 0) -> Iterator[Branch | Refusal]:
        """Make the branches.

        Args:
            partition: The partition to make them for.
            seed: Not used, since nothing here is random.

        Yields:
            A branch for each block, or the reason why there is none.
        """
        for interval in intervals(partition, "lowres"):
            yield interval.rewrite(_halved, approximate=True)


def _halved(module: fx.GraphModule) -> str:
    graph = module.graph
    nodes = list(graph.nodes)
    operands = [node for node in nodes if node.op == "placeholder"]
    if len(operands) != 1:
        raise NoBranchError("it reads values beside its input, whose size would not fit")
    if not any(operator_name(node) in CONVOLUTIONS for node in nodes):
        raise NoBranchError("it has no convolution")
    (operand,) = operands
    last: Any = graph.output_node().args[0]
    value, result = operand.meta["val"], last.meta["val"]
    dims = value.dim() - 2
    if dims not in _POOLINGS or result.dim() != value.dim():
        raise NoBranchError(
            f"its input has {value.dim()} dimensions, and its output {result.dim()}"
        )
    small = [n for n in (*sizes(value)[2:], *sizes(result)[2:]) if isinstance(n, int) and n < 2]
    if small:
        raise NoBranchError("its input or output has a height or width of 1")
    with graph.inserting_after(operand):
        pooled = graph.call_function(_POOLINGS[dims], (operand, [2] * dims, [2] * dims))
    operand.replace_all_uses_with(pooled, delete_user_cb=lambda user: user is not pooled)
    with graph.inserting_before(graph.output_node()):
        enlarged = graph.call_function(_UPSAMPLINGS[dims], (last, *_target(result)))
    graph.output_node().args = (enlarged,)
    return f"at half the size along {dims} dimensions"


def _target(result: Tensor) -> tuple[list[int] | None, list[float] | None]:
    """The size or, where it varies, the factor of an enlargement."""
    wanted = sizes(result)[2:]
    if all(isinstance(n, int) for n in wanted):
        return [int(n) for n in wanted], None
    return None, [2.0] * len(wanted)
