"""Projections: operators at the ends of a branch that change the shape of a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import free_symbols

from fxelastic.branches.propagation import example_shapes, sizes
from fxelastic.ir.graph_symbols import GraphSymbol
from fxelastic.ir.part_names import free_name

_ATEN = torch.ops.aten
_CONVOLUTIONS = {1: _ATEN.conv1d.default, 2: _ATEN.conv2d.default, 3: _ATEN.conv3d.default}
_POOLINGS = {
    1: _ATEN.avg_pool1d.default,
    2: _ATEN.avg_pool2d.default,
    3: _ATEN.avg_pool3d.default,
}
_UPSAMPLINGS = {
    1: _ATEN.upsample_nearest1d.vec,
    2: _ATEN.upsample_nearest2d.vec,
    3: _ATEN.upsample_nearest3d.vec,
}


def obstacle(source: Tensor, target: Tensor, symbols: Sequence[GraphSymbol]) -> str:
    """The reason why no projection leads from one shape to the other; empty if one may do.

    Args:
        source: A fake tensor.
        target: A fake tensor.
        symbols: The partition's symbols.
    """
    if source.dtype != target.dtype:
        return f"its dtype is {source.dtype}, not {target.dtype}"
    if not source.is_floating_point():
        return f"values of {source.dtype} can't be projected"
    if source.dim() != target.dim():
        return f"it has {source.dim()} dimensions, not {target.dim()}"
    named = {s.variable for s in symbols if not s.is_batch}
    differ = [
        d for d, (a, b) in enumerate(zip(sizes(source), sizes(target), strict=True)) if a != b
    ]
    unnamed = (free_symbols(v.shape[d]) - named for d in differ for v in (source, target))
    if 0 in differ or any(unnamed):
        return "sizes that depend on the batch differ"
    return ""


def project(
    module: fx.GraphModule,
    value: fx.Node,
    source: Tensor,
    target: Tensor,
    channel: int,
    name: str,
    symbols: Sequence[GraphSymbol],
) -> fx.Node:
    """Add operators that project a value; the caller checks `obstacle` first.

    Channels go through a 1x1 convolution, or a linear layer if they are the last dimension, that
    starts as an identity on the common channels. Its stride is the reduction of the other sizes;
    pooling or interpolation removes the rest of a difference (odd sizes). Sizes that vary have to
    differ by the same factor at all sizes.

    Args:
        module: Its graph gets the operators at the insertion point that the caller has set.
        value: The value to project.
        source: Fake tensor of its shape.
        target: Fake tensor of the shape wanted.
        channel: The dimension of the channels.
        name: Name of the new weight in the module, changed if the module has it already.
        symbols: The partition's symbols.

    Returns:
        The projected value.

    Raises:
        ValueError: Sizes that vary differ by no fixed factor.
    """
    graph = module.graph
    starts, ends = _shapes(source, target, symbols)
    start, end = starts[0], ends[0]
    spatial = [d for d in range(1, len(start)) if d != channel]
    before = [[shape[d] for d in spatial] for shape in starts]
    after = [[shape[d] for d in spatial] for shape in ends]
    last = channel == len(start) - 1 and channel != 1
    if last:
        if start[channel] != end[channel]:
            weight = _weight(module, name, source, (end[channel], start[channel]))
            value = graph.call_function(_ATEN.linear.default, (value, weight))
        if before == after:
            return value
        order = (0, channel, *spatial)
        value = graph.call_function(_ATEN.permute.default, (value, order))
        value = _resize(graph, value, before, after)
        back = [order.index(d) for d in range(len(start))]
        return graph.call_function(_ATEN.permute.default, (value, back))
    if start[channel] != end[channel]:
        shape = (end[channel], start[channel], *(1 for _ in spatial))
        weight = _weight(module, name, source, shape)
        if not spatial:
            return graph.call_function(_ATEN.linear.default, (value, weight))
        strides = [max(1, a // b) for a, b in zip(before[0], after[0], strict=True)]
        strided = [_divided(shape, strides, up=True) for shape in before]
        if len(before) > 1 and max(strides) > 1 and strided != after:
            # Odd sizes are rounded down here, unlike by strides.
            value = _resize(graph, value, before, after)
            strides, strided = [1 for _ in spatial], after
        convolution = _CONVOLUTIONS[len(spatial)]
        value = graph.call_function(convolution, (value, weight, None, strides))
        before = strided
    return value if before == after else _resize(graph, value, before, after)


def _resize(
    graph: fx.Graph,
    value: fx.Node,
    before: Sequence[Sequence[int]],
    after: Sequence[Sequence[int]],
) -> fx.Node:
    """Resize the dimensions after the channels.

    Args:
        graph: The graph, at its insertion point.
        value: The value to resize.
        before: Its sizes: the example's, and others if they vary.
        after: The sizes wanted, likewise.

    Raises:
        ValueError: No operator gives all of them.
    """
    n = len(before[0])
    if n in _POOLINGS and all(a >= b > 0 for a, b in zip(before[0], after[0], strict=True)):
        window = [a // b for a, b in zip(before[0], after[0], strict=True)]
        for up, arguments in ((False, ()), (True, (0, True))):
            if [_divided(shape, window, up=up) for shape in before] == list(after):
                return graph.call_function(_POOLINGS[n], (value, window, window, *arguments))
    if all(shape == after[0] for shape in after):
        return graph.call_function(_UPSAMPLINGS[n], (value, list(after[0]), None))
    factors = [b // max(a, 1) for a, b in zip(before[0], after[0], strict=True)]
    if [[a * f for a, f in zip(s, factors, strict=True)] for s in before] == list(after):
        scales = [float(f) for f in factors]
        return graph.call_function(_UPSAMPLINGS[n], (value, None, scales))
    raise ValueError(f"sizes that vary differ by no fixed factor: {before} and {after}")


def _divided(shape: Sequence[int], by: Sequence[int], *, up: bool) -> list[int]:
    return [-(-size // n) if up else size // n for size, n in zip(shape, by, strict=True)]


def _weight(module: fx.GraphModule, name: str, like: Tensor, shape: Sequence[int]) -> fx.Node:
    """A weight that copies channels: output channel i is input channel i, modulo their number."""
    weight = torch.zeros(*shape, dtype=like.dtype, device=like.device)
    rows = torch.arange(shape[0])
    weight[rows, rows % shape[1]] = 1.0
    name = free_name(module, name)
    module.register_parameter(name, nn.Parameter(weight))
    return module.graph.get_attr(name)


def _shapes(
    source: Tensor, target: Tensor, symbols: Sequence[GraphSymbol]
) -> tuple[list[list[int]], list[list[int]]]:
    """Both shapes at the example's sizes and at others; equal symbolic sizes count as 1."""
    named = sizes(source), sizes(target)
    equal = [isinstance(a, str) and a == b for a, b in zip(*named, strict=True)]
    starts, ends = (
        [[1 if same else n for same, n in zip(equal, shape, strict=True)] for shape in shapes]
        for shapes in (example_shapes(source, symbols), example_shapes(target, symbols))
    )
    if all(shape == starts[0] for shape in starts) and all(shape == ends[0] for shape in ends):
        return starts[:1], ends[:1]
    return starts, ends
