"""Norms, reductions and pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from fxelastic.branches.pruning.labels import Dims, fixed
from fxelastic.branches.pruning.rules.arguments import argument, dimension, first_operand, mixes
from fxelastic.ir.operators import operator_name

if TYPE_CHECKING:
    from fxelastic.branches.pruning.analysis import Analysis


def batch_norm_module(a: Analysis, node: fx.Node) -> Dims:
    """Each channel alone, with statistics of its own."""
    dims = a.dims[first_operand(node)]
    target = str(node.target)
    if target in a.norms:
        a.channels.unite(a.norms[target], dims[1])
    a.norms[target] = dims[1]
    return dims


def channel_norm(a: Analysis, node: fx.Node) -> Dims:
    """Batch and instance norms: each channel alone, over all else if by its own statistics."""
    dims = a.dims[first_operand(node)]
    statistics = node.args[3:5]
    if "instance" in operator_name(node) or argument(node, 5, "training") or None in statistics:
        mixes(a, node, dims[2:])
    for operand in node.args[1:5]:
        if isinstance(operand, fx.Node):
            a.channels.unite(dims[1], a.dims[operand][0])
    return dims


def group_norm(a: Analysis, node: fx.Node) -> Dims:
    """Channels of a group are mixed: a group goes as a whole."""
    dims, groups = a.dims[first_operand(node)], node.args[1]
    assert isinstance(groups, int)
    if groups == 1:
        mixes(a, node, (dims[1],))
    for group in dims[1].reshape(groups, -1):
        a.channels.unite_all(group)
    for operand in node.args[2:4]:
        if isinstance(operand, fx.Node):
            a.channels.unite(dims[1], a.dims[operand][0])
    mixes(a, node, dims[2:])
    return dims


def weight_norm(a: Analysis, node: fx.Node) -> Dims:
    """A weight with a norm of its own for each index of one dimension."""
    value, scale = node.args[:2]
    dims, d = list(a.dims[value]), int(argument(node, 2, "dim", 0))  # type: ignore[index]
    for i, (labels, other) in enumerate(zip(dims, a.dims[scale], strict=True)):  # type: ignore[index]
        if i == d:
            a.channels.unite(labels, other)
        else:
            mixes(a, node, (labels,))
    return tuple(dims)


def layer_norm(a: Analysis, node: fx.Node) -> Dims:
    """Layer and RMS norms: the normalised dimensions stay, unless the policy lets them go."""
    dims, shape = a.dims[first_operand(node)], node.args[1]
    normalised = dims[len(dims) - len(shape) :]  # type: ignore[arg-type]
    if a.policy.approximate:
        a.normalised.extend(normalised)
    else:
        mixes(a, node, normalised)
    for operand in node.args[2:4]:
        if isinstance(operand, fx.Node):
            for labels, own in zip(normalised, a.dims[operand], strict=True):
                a.channels.unite(labels, own)
    return dims


def along(a: Analysis, node: fx.Node) -> Dims:
    """Softmax and the like: the dimension stays."""
    dims = a.dims[first_operand(node)]
    mixes(a, node, (dims[int(node.args[1])],))  # type: ignore[arg-type]
    return dims


def reduction(a: Analysis, node: fx.Node) -> Dims | None:
    """A sum or mean over dimensions, which stay."""
    dims = a.dims[first_operand(node)]
    which = argument(node, 1, "dim")
    kept = bool(argument(node, 2, "keepdim", False))
    if which is None or which == []:
        which = range(len(dims))
    over = {dimension(d, len(dims)) for d in ([which] if isinstance(which, int) else which)}
    mixes(a, node, [dims[d] for d in sorted(over)])
    result = (fixed(1) if d in over else dims[d] for d in range(len(dims)) if kept or d not in over)
    return tuple(result)


def spatial(a: Analysis, node: fx.Node) -> Dims:
    """Pooling, interpolation and the like: batch and channels pass."""
    dims, size = a.dims[first_operand(node)], a.shape(node)
    mixes(a, node, dims[2:])
    return (*dims[:2], *(fixed(n) for n in size[2:]))
