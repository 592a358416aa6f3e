"""Rules of operators that move, join or split elements."""

from __future__ import annotations

import numpy as np
from torch import fx

from fxelastic.branches.pruning.channels import FIXED, Analysis, Dims, fixed
from fxelastic.branches.pruning.reshaping import reshaped
from fxelastic.branches.pruning.rules.elementwise import dimension, first_operand
from fxelastic.ir.operators import argument


def reshape(a: Analysis, node: fx.Node) -> Dims:
    """Views, flattening and unflattening."""
    operand = first_operand(node)
    return reshaped(a.channels, a.dims[operand], a.shape(operand), a.shape(node), a.policy.factor)


def permutation(a: Analysis, node: fx.Node) -> Dims:
    """Dimensions in another order."""
    dims = a.dims[first_operand(node)]
    order = node.args[1]
    return tuple(dims[dimension(int(d), len(dims))] for d in order)  # type: ignore[union-attr, arg-type]


def transposition(a: Analysis, node: fx.Node) -> Dims:
    """Two dimensions are exchanged."""
    dims = list(a.dims[first_operand(node)])
    one, other = (int(d) for d in node.args[1:3]) if len(node.args) > 2 else (-2, -1)  # type: ignore[arg-type]
    dims[one], dims[other] = dims[other], dims[one]
    return tuple(dims)


def unsqueeze(a: Analysis, node: fx.Node) -> Dims:
    """One more dimension."""
    dims = list(a.dims[first_operand(node)])
    dims.insert(dimension(int(node.args[1]), len(dims) + 1), fixed(1))  # type: ignore[arg-type]
    return tuple(dims)


def squeeze(a: Analysis, node: fx.Node) -> Dims:
    """Fewer dimensions of size 1."""
    dims, rest = a.dims[first_operand(node)], iter(a.shape(node))
    result, wanted = [], next(rest, None)
    for labels in dims:
        if wanted is not None and len(labels) == wanted:
            result.append(labels)
            wanted = next(rest, None)
    return tuple(result)


def expansion(a: Analysis, node: fx.Node) -> Dims:
    """Dimensions of size 1 are repeated."""
    dims, size = a.dims[first_operand(node)], a.shape(node)
    result = [fixed(n) for n in size]
    for d, labels in enumerate(dims):
        at = d + len(size) - len(dims)
        if len(labels) == size[at]:
            result[at] = labels
    return tuple(result)


def repeat_interleave(a: Analysis, node: fx.Node) -> Dims | None:
    """Each index is repeated (keys that several queries share)."""
    dims, times, d = a.dims[first_operand(node)], node.args[1], argument(node, 2, "dim")
    if not isinstance(times, int) or d is None:
        return None
    d = dimension(d, len(dims))
    return tuple(np.repeat(x, times) if i == d else x for i, x in enumerate(dims))


def channel_shuffle(a: Analysis, node: fx.Node) -> Dims:
    """Groups are interleaved: the same channels of all groups go together."""
    dims, groups = a.dims[first_operand(node)], node.args[1]
    assert isinstance(groups, int)
    rows = dims[1].reshape(groups, -1)
    for column in rows.T:
        a.channels.unite_all(np.ascontiguousarray(column))
    return (dims[0], np.ascontiguousarray(rows.T).reshape(-1), *dims[2:])


def pixel_shuffle(a: Analysis, node: fx.Node) -> Dims:
    """Several channels become one, at a larger size."""
    dims, size = a.dims[first_operand(node)], a.shape(node)
    rows = dims[-3].reshape(size[-3], -1)
    for row in rows:
        a.channels.unite_all(row)
    a.mixes(node, dims[-2:])
    return (*dims[:-3], rows[:, 0].copy(), fixed(size[-2]), fixed(size[-1]))


def concatenation(a: Analysis, node: fx.Node) -> Dims:
    """Along one dimension the labels are joined; along the others they are united."""
    operands = [a.dims[operand] for operand in node.args[0]]  # type: ignore[union-attr, index]
    d = dimension(int(argument(node, 1, "dim", 0)), len(operands[0]))
    for dims in operands[1:]:
        for i, (one, other) in enumerate(zip(operands[0], dims, strict=True)):
            if i != d:
                a.channels.unite(one, other)
    joined = np.concatenate([dims[d] for dims in operands])
    return tuple(joined if i == d else labels for i, labels in enumerate(operands[0]))


def stack(a: Analysis, node: fx.Node) -> Dims:
    """One more dimension; along the others the labels are united."""
    operands = [a.dims[operand] for operand in node.args[0]]  # type: ignore[union-attr, index]
    for dims in operands[1:]:
        for one, other in zip(operands[0], dims, strict=True):
            a.channels.unite(one, other)
    result = list(operands[0])
    d = dimension(int(argument(node, 1, "dim", 0)), len(result) + 1)
    result.insert(d, fixed(len(operands)))
    return tuple(result)


def parts(a: Analysis, node: fx.Node) -> list[Dims]:
    """Chunks and splits: each has the labels of its range."""
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
    a.mixes(node, (dims[d],))
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
    a.mixes(node, (dims[d],))
    return tuple(labels for i, labels in enumerate(dims) if i != d)


def slicing(a: Analysis, node: fx.Node) -> Dims | None:
    """A range of one dimension."""
    dims = a.dims[first_operand(node)]
    d = dimension(int(argument(node, 1, "dim", 0)), len(dims))
    start, stop = argument(node, 2, "start"), argument(node, 3, "end")
    step = argument(node, 4, "step", 1)
    if any(isinstance(value, fx.Node) for value in (start, stop, step)):
        return None
    if step != 1 and (a.channels.roots(dims[d]) != FIXED).any():
        a.mixes(node, (dims[d],))
    return tuple(x[slice(start, stop, step)] if i == d else x for i, x in enumerate(dims))


def padding(a: Analysis, node: fx.Node) -> Dims:
    """Padded dimensions stay."""
    dims, size = a.dims[first_operand(node)], a.shape(node)
    pads = list(node.args[1])  # type: ignore[arg-type]
    padded = {len(dims) - 1 - i // 2 for i, amount in enumerate(pads) if amount}
    a.mixes(node, [dims[d] for d in sorted(padded)])
    return tuple(fixed(size[d]) if d in padded else labels for d, labels in enumerate(dims))


def indexing(a: Analysis, node: fx.Node) -> Dims | None:
    """A table read at fixed places, such as relative position biases; indexed dimensions stay."""
    dims, indices = a.dims[first_operand(node)], list(node.args[1])  # type: ignore[arg-type]
    which = [d for d, index in enumerate(indices) if index is not None]
    if not which or which != list(range(which[0], which[-1] + 1)):
        return None
    shape = a.shape(node)
    n_new = len(shape) - (len(dims) - len(which))
    for index in indices:
        if isinstance(index, fx.Node):
            a.channels.fix_dims(a.dims.get(index, ()))
    a.mixes(node, [dims[d] for d in which])
    new = [fixed(size) for size in shape[which[0] : which[0] + n_new]]
    return (*dims[: which[0]], *new, *dims[which[-1] + 1 :])


def embedding(a: Analysis, node: fx.Node) -> Dims:
    """Rows of a table: all rows stay."""
    table, places = a.dims[first_operand(node)], a.dims[node.args[1]]  # type: ignore[index]
    a.mixes(node, (table[0],))
    a.channels.fix_dims(places)
    return (*(fixed(len(labels)) for labels in places), table[1])


def untouched_dimension(a: Analysis, node: fx.Node) -> Dims:
    """Operators that move indices along dimensions (roll, flip): the dimensions stay."""
    dims = a.dims[first_operand(node)]
    which = node.args[-1]
    for d in [which] if isinstance(which, int) else which:  # type: ignore[union-attr]
        a.mixes(node, (dims[int(d)],))  # type: ignore[arg-type]
    return dims
