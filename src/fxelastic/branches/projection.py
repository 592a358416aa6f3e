"""Projections: operators at the ends of a branch that change the shape of a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from fxelastic.branches.propagation import sizes
from fxelastic.ir.part_names import free_name

_ATEN = torch.ops.aten
_CONVOLUTIONS = {1: _ATEN.conv1d.default, 2: _ATEN.conv2d.default, 3: _ATEN.conv3d.default}
_POOLINGS = {2: _ATEN.avg_pool2d.default, 3: _ATEN.avg_pool3d.default}
_UPSAMPLINGS = {
    1: _ATEN.upsample_nearest1d.vec,
    2: _ATEN.upsample_nearest2d.vec,
    3: _ATEN.upsample_nearest3d.vec,
}


def obstacle(source: Tensor, target: Tensor) -> str:
    """The reason why no projection leads from one shape to the other; empty if one does.

    Args:
        source: A fake tensor.
        target: A fake tensor.
    """
    if source.dtype != target.dtype:
        return f"its dtype is {source.dtype}, not {target.dtype}"
    if not source.is_floating_point():
        return f"values of {source.dtype} can't be projected"
    if source.dim() != target.dim():
        return f"it has {source.dim()} dimensions, not {target.dim()}"
    differ = [
        d for d, (a, b) in enumerate(zip(sizes(source), sizes(target), strict=True)) if a != b
    ]
    if any(isinstance(sizes(v)[d], str) for d in differ for v in (source, target)) or 0 in differ:
        return "sizes that depend on the batch differ"
    return ""


def project(
    module: fx.GraphModule, value: fx.Node, source: Tensor, target: Tensor, channel: int, name: str
) -> fx.Node:
    """Add operators that project a value; the caller checks `obstacle` first.

    Channels go through a 1x1 convolution, or a linear layer if they are the last dimension, that
    starts as an identity on the common channels. Its stride is the reduction of the other sizes;
    pooling or interpolation removes the rest of a difference (odd sizes).

    Args:
        module: Its graph gets the operators at the insertion point that the caller has set.
        value: The value to project.
        source: Fake tensor of its shape.
        target: Fake tensor of the shape wanted.
        channel: The dimension of the channels.
        name: Name of the new weight in the module, changed if the module has it already.

    Returns:
        The projected value.
    """
    graph = module.graph
    start, end = _fixed(source), _fixed(target)
    spatial = [d for d in range(1, len(start)) if d != channel]
    last = channel == len(start) - 1 and channel != 1
    if last:
        if start[channel] != end[channel]:
            weight = _weight(module, name, source, (end[channel], start[channel]))
            value = graph.call_function(_ATEN.linear.default, (value, weight))
        if [start[d] for d in spatial] == [end[d] for d in spatial]:
            return value
        order = (0, channel, *spatial)
        value = graph.call_function(_ATEN.permute.default, (value, order))
        value = _resize(graph, value, [start[d] for d in spatial], [end[d] for d in spatial])
        back = [order.index(d) for d in range(len(start))]
        return graph.call_function(_ATEN.permute.default, (value, back))
    before, after = [start[d] for d in spatial], [end[d] for d in spatial]
    if start[channel] != end[channel]:
        strides = [max(1, a // b) for a, b in zip(before, after, strict=True)]
        shape = (end[channel], start[channel], *(1 for _ in spatial))
        weight = _weight(module, name, source, shape)
        if spatial:
            convolution = _CONVOLUTIONS[len(spatial)]
            value = graph.call_function(convolution, (value, weight, None, strides))
            before = [-(-size // stride) for size, stride in zip(before, strides, strict=True)]
        else:
            value = graph.call_function(_ATEN.linear.default, (value, weight))
    return value if before == after else _resize(graph, value, before, after)


def _resize(
    graph: fx.Graph, value: fx.Node, before: Sequence[int], after: Sequence[int]
) -> fx.Node:
    """Resize the dimensions after the channels."""
    n = len(before)
    if n in _POOLINGS and all(a % b == 0 for a, b in zip(before, after, strict=True)):
        window = [a // b for a, b in zip(before, after, strict=True)]
        return graph.call_function(_POOLINGS[n], (value, window, window))
    return graph.call_function(_UPSAMPLINGS[n], (value, list(after), None))


def _weight(module: fx.GraphModule, name: str, like: Tensor, shape: Sequence[int]) -> fx.Node:
    """A weight that copies channels: output channel i is input channel i, modulo their number."""
    weight = torch.zeros(*shape, dtype=like.dtype, device=like.device)
    rows = torch.arange(shape[0])
    weight[rows, rows % shape[1]] = 1.0
    name = free_name(module, name)
    module.register_parameter(name, nn.Parameter(weight))
    return module.graph.get_attr(name)


def _fixed(value: Tensor) -> list[int]:
    """The sizes after the first; symbolic sizes are equal on both sides and count as 1."""
    return [0, *(size if isinstance(size, int) else 1 for size in sizes(value)[1:])]
