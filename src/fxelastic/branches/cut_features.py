"""The features that cross a cut, and what a small head reads of them."""

from __future__ import annotations

from torch import Tensor

from fxelastic.branches.interval import Interval, NoBranchError
from fxelastic.branches.propagation import is_feature
from fxelastic.ir.operators import CONVOLUTIONS, operator_name

_LINEAR = frozenset({"aten.linear", "aten.addmm", "aten.mm", "aten.matmul", "aten.layer_norm"})


def latest(interval: Interval) -> str:
    """The feature that is computed last of those that an interval reads.

    Args:
        interval: The blocks after the cut.

    Raises:
        NoBranchError: They read no features.
    """
    order = {node: i for i, node in enumerate(interval.partition.nodes)}
    found = [name for name in interval.inputs if is_feature(interval.partition.value(name))]
    if not found:
        raise NoBranchError("it reads no features")
    return max(found, key=order.__getitem__)


def dims_of_space(interval: Interval, value: Tensor) -> int:
    """The dimensions of space of features ``(batch, channels, ...)``; 0 for all others.

    The next layer tells: a convolution, or a linear map or norm over the last dimension.

    Args:
        interval: The blocks after the cut.
        value: The features.
    """
    if not 3 <= value.dim() <= 5:
        return 0
    nodes = interval.partition.nodes
    for block in interval.blocks:
        for name in block.nodes:
            operator = operator_name(nodes[name])
            if operator in CONVOLUTIONS:
                return value.dim() - 2
            if operator in _LINEAR:
                # A classifier may follow pooling and flattening.
                return value.dim() - 2 if value.dim() > 3 else 0
    return 0


def pooled(value: Tensor, dims: int) -> Tensor:
    """The mean of features over space or tokens: ``(batch, channels)``.

    Args:
        value: The features.
        dims: The number of their dimensions of space, which come last.
    """
    if value.dim() <= 2:
        return value.reshape(len(value), -1)
    axes = range(2, 2 + dims) if dims else range(1, value.dim() - 1)
    return value.mean(tuple(axes))
