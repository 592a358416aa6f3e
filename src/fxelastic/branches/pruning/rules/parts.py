"""Operators that take tensors apart or join them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import fx

from fxelastic.branches.pruning.labels import FIXED, Dims, fixed
from fxelastic.branches.pruning.rules.arguments import argument, dimension, first_operand, mixes

if TYPE_CHECKING:
    from fxelastic.branches.pruning.analysis import Analysis


def concatenation(a: Analysis, node: fx.Node) -> Dims:
    """Along one dimension the labels stand in a row; along the others they are the same."""
    operands = [a.dims[operand] for operand in node.args[0]]  # type: ignore[union-attr, index]
    d = dimension(int(argument(node, 1, "dim", 0)), len(operands[0]))
    for dims in operands[1:]:
        for i, (one, other) in enumerate(zip(operands[0], dims, strict=True)):
            if i != d:
                a.channels.unite(one, other)
    joined = np.concatenate([dims[d] for dims in operands])
    return tuple(joined if i == d else labels for i, labels in enumerate(operands[0]))


def stack(a: Analysis, node: fx.Node) -> Dims:
    """One more dimension; along the others the labels are the same."""
    operands = [a.dims[operand] for operand in node.args[0]]  # type: ignore[union-attr, index]
    for dims in operands[1:]:
        for one, other in zip(operands[0], dims, strict=True):
            a.channels.unite(one, other)
    result = list(operands[0])
    d = dimension(int(argument(node, 1, "dim", 0)), len(result) + 1)
    result.insert(d, fixed(len(operands)))
    return tuple(result)


def parts(a: Analysis, node: fx.Node) -> list[Dims]:
    """Chunks and splits: each has the labels of its stretch."""
    dims = a.dims[first_operand(node)]
    d = dimension(int(argument(node, 2, "dim", 0)), len(dims))
    result, start = [], 0
    for value in node.meta["val"]:
        stop = start + int(value.shape[d])
        result.append(tuple(x[start:stop] if i == d else x for i, x in enumerate(dims)))
        start = stop
    return result


def unbind(a: Analysis, node: fx.Node) -> list[Dims]:
    """Each index alone: the dimension stays."""
    dims = a.dims[first_operand(node)]
    d = dimension(int(argument(node, 1, "dim", 0)), len(dims))
    mixes(a, node, (dims[d],))
    return [tuple(x for i, x in enumerate(dims) if i != d) for _ in node.meta["val"]]


def item(a: Analysis, node: fx.Node) -> Dims | None:
    """One of several results."""
    found = a.parts.get(first_operand(node))
    index = node.args[1]
    return found[index] if found is not None and isinstance(index, int) else None


def select(a: Analysis, node: fx.Node) -> Dims:
    """One index: the dimension stays."""
    dims = a.dims[first_operand(node)]
    d = dimension(int(node.args[1]), len(dims))  # type: ignore[arg-type]
    mixes(a, node, (dims[d],))
    return tuple(labels for i, labels in enumerate(dims) if i != d)


def slicing(a: Analysis, node: fx.Node) -> Dims | None:
    """A stretch of one dimension."""
    dims = a.dims[first_operand(node)]
    d = dimension(int(argument(node, 1, "dim", 0)), len(dims))
    start, stop = argument(node, 2, "start"), argument(node, 3, "end")
    step = argument(node, 4, "step", 1)
    if any(isinstance(value, fx.Node) for value in (start, stop, step)):
        return None
    if step != 1 and (a.channels.roots(dims[d]) != FIXED).any():
        mixes(a, node, (dims[d],))
    return tuple(x[slice(start, stop, step)] if i == d else x for i, x in enumerate(dims))


def padding(a: Analysis, node: fx.Node) -> Dims:
    """Padded dimensions stay."""
    dims, size = a.dims[first_operand(node)], a.shape(node)
    pads = list(node.args[1])  # type: ignore[arg-type]
    padded = {len(dims) - 1 - i // 2 for i, amount in enumerate(pads) if amount}
    mixes(a, node, [dims[d] for d in sorted(padded)])
    return tuple(fixed(size[d]) if d in padded else labels for d, labels in enumerate(dims))


def indexing(a: Analysis, node: fx.Node) -> Dims | None:
    """A table read at fixed places, as relative position biases are; what is indexed stays."""
    dims, indices = a.dims[first_operand(node)], list(node.args[1])  # type: ignore[arg-type]
    which = [d for d, index in enumerate(indices) if index is not None]
    if not which or which != list(range(which[0], which[-1] + 1)):
        return None
    shape = a.shape(node)
    n_new = len(shape) - (len(dims) - len(which))
    for index in indices:
        if isinstance(index, fx.Node):
            a.channels.fix_dims(a.dims.get(index, ()))
    mixes(a, node, [dims[d] for d in which])
    new = [fixed(size) for size in shape[which[0] : which[0] + n_new]]
    return (*dims[: which[0]], *new, *dims[which[-1] + 1 :])


def embedding(a: Analysis, node: fx.Node) -> Dims:
    """Rows of a table: their number stays."""
    table, places = a.dims[first_operand(node)], a.dims[node.args[1]]  # type: ignore[index]
    mixes(a, node, (table[0],))
    a.channels.fix_dims(places)
    return (*(fixed(len(labels)) for labels in places), table[1])


def untouched_dimension(a: Analysis, node: fx.Node) -> Dims:
    """What moves indices along dimensions (roll, flip, cumsum): these stay."""
    dims = a.dims[first_operand(node)]
    which = node.args[-1]
    for d in [which] if isinstance(which, int) else which:  # type: ignore[union-attr]
        mixes(a, node, (dims[int(d)],))  # type: ignore[arg-type]
    return dims
