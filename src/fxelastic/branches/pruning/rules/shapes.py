"""Operators that move elements to other places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import fx

from fxelastic.branches.pruning.labels import Dims, fixed
from fxelastic.branches.pruning.reshaping import reshaped
from fxelastic.branches.pruning.rules.arguments import argument, dimension, first_operand, mixes

if TYPE_CHECKING:
    from fxelastic.branches.pruning.analysis import Analysis


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
    """Two dimensions change places."""
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
    """Each index several times in a row (keys shared by several queries)."""
    dims, times, d = a.dims[first_operand(node)], node.args[1], argument(node, 2, "dim")
    if not isinstance(times, int) or d is None:
        return None
    d = dimension(d, len(dims))
    return tuple(np.repeat(x, times) if i == d else x for i, x in enumerate(dims))


def channel_shuffle(a: Analysis, node: fx.Node) -> Dims:
    """Groups are interleaved: the same places of all groups go together."""
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
    mixes(a, node, dims[-2:])
    return (*dims[:-3], rows[:, 0].copy(), fixed(size[-2]), fixed(size[-1]))
