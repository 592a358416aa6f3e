"""Rules of operators that sum over products, whose channels can be removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from fxelastic.branches.pruning.channels import Analysis, Dims, Labels, fixed
from fxelastic.branches.pruning.rules.elementwise import first_operand
from fxelastic.ir.operators import argument, groups_of


def convolution(a: Analysis, node: fx.Node) -> Dims:
    """Convolutions; grouped convolutions lose whole groups, or the same channels of each group."""
    x, weight = a.dims[first_operand(node)], a.dims[node.args[1]]  # type: ignore[index]
    groups = int(groups_of(node))
    a.mixes(node, x[2:])
    a.channels.fix_dims(weight[2:])
    bias = argument(node, 2, "bias")
    if isinstance(bias, fx.Node):
        a.channels.unite(weight[0], a.dims[bias][0])
    if groups == 1:
        a.channels.unite(x[1], weight[1])
        _contraction(a, node.args[1], 1)
    else:
        inputs, outputs = x[1].reshape(groups, -1), weight[0].reshape(groups, -1)
        if loses_groups(a, node):
            a.channels.fix(weight[1])
            for group in range(groups):
                a.channels.unite_all(np.concatenate([inputs[group], outputs[group]]))
            a.summed.append(x[1])
        else:
            for group in range(groups):
                a.channels.unite(inputs[group], weight[1])
                a.channels.unite(outputs[group], outputs[0])
            _contraction(a, node.args[1], 1)
    return (x[0], weight[0], *(fixed(size) for size in a.shape(node)[2:]))


def loses_groups(a: Analysis, node: fx.Node) -> bool:
    """Whether a grouped convolution loses whole groups, as depthwise convolutions must."""
    return a.policy.whole_groups or a.shape(node.args[1])[1] == 1  # type: ignore[arg-type]


def transposed_convolution(a: Analysis, node: fx.Node) -> Dims | None:
    """Transposed convolutions without groups."""
    if int(groups_of(node)) != 1:
        return None
    x, weight = a.dims[first_operand(node)], a.dims[node.args[1]]  # type: ignore[index]
    a.mixes(node, x[2:])
    a.channels.fix_dims(weight[2:])
    bias = argument(node, 2, "bias")
    if isinstance(bias, fx.Node):
        a.channels.unite(weight[1], a.dims[bias][0])
    a.channels.unite(x[1], weight[0])
    _contraction(a, node.args[1], 0)
    return (x[0], weight[1], *(fixed(size) for size in a.shape(node)[2:]))


def linear(a: Analysis, node: fx.Node) -> Dims:
    """``x @ weight.T + bias``."""
    x, weight = a.dims[first_operand(node)], a.dims[node.args[1]]  # type: ignore[index]
    bias = argument(node, 2, "bias")
    if isinstance(bias, fx.Node):
        a.channels.unite(weight[0], a.dims[bias][0])
    a.channels.unite(x[-1], weight[1])
    _contraction(a, node.args[1], 1)
    return (*x[:-1], weight[0])


def product(a: Analysis, node: fx.Node) -> Dims | None:
    """Matrix products of two tensors, with or without batch dimensions."""
    left, right = node.args[:2]
    return _product(a, left, right)


def _product(a: Analysis, left: Any, right: Any) -> Dims | None:
    x, y = a.dims[left], a.dims[right]
    if len(x) < 2 or len(y) < 2:
        return None
    if left not in a.held and right not in a.held:
        # Queries by keys: no weight reads the channels that are summed over.
        a.channels.fix_dims((x[-1], y[-2]), "the products of attention run over these channels")
    a.channels.unite(x[-1], y[-2])
    _contraction(a, left, len(x) - 1)
    _contraction(a, right, len(y) - 2)
    return (*_broadcast(a, [x[:-2], y[:-2]]), x[-2], y[-1])


def added_product(a: Analysis, node: fx.Node) -> Dims | None:
    """``bias + x @ y``."""
    bias, left, right = node.args[:3]
    result = _product(a, left, right)
    return None if result is None else _broadcast(a, [a.dims[bias], result])  # type: ignore[index]


def einsum(a: Analysis, node: fx.Node) -> Dims | None:
    """Products by letters."""
    equation, operands = node.args[:2]
    terms, arrow, result = str(equation).replace(" ", "").partition("->")
    if "." in str(equation) or not arrow:
        return None
    letters: dict[str, Labels] = {}
    for term, operand in zip(terms.split(","), operands, strict=True):  # type: ignore[arg-type]
        if len(set(term)) != len(term):
            return None
        for d, (letter, labels) in enumerate(zip(term, a.dims[operand], strict=True)):
            if letter in letters and len(letters[letter]) == len(labels):
                a.channels.unite(letters[letter], labels)
            elif len(labels) > 1 or letter not in letters:
                letters[letter] = labels
            if letter not in result:
                _contraction(a, operand, d)
                if not a.held.intersection(operands):  # type: ignore[arg-type]
                    a.channels.fix(labels, "the products of attention run over these channels")
    return tuple(letters[letter] for letter in result)


def attention(a: Analysis, node: fx.Node) -> Dims | None:
    """Scaled dot products; heads go as a whole, together with all queries that share their keys."""
    query, key, value = (a.dims[operand] for operand in node.args[:3])  # type: ignore[index]
    mask = argument(node, 3, "attn_mask")
    # The default scale depends on the number of dimensions of a head, so all of them stay.
    a.mixes(node, (query[-1], key[-1], key[-2], value[-2], query[-2]))
    heads = argument(node, 7, "enable_gqa", False)
    if heads and len(query[-3]) != len(key[-3]):
        shared = query[-3].reshape(len(key[-3]), -1)
        for i, row in enumerate(shared):
            a.channels.unite_all(np.concatenate([row, key[-3][i : i + 1], value[-3][i : i + 1]]))
        batch = _broadcast(a, [query[:-3], key[:-3], value[:-3]])
        batch = (*batch, query[-3])
    else:
        batch = _broadcast(a, [query[:-2], key[:-2], value[:-2]])
    if isinstance(mask, fx.Node):
        dims = a.dims[mask]
        a.channels.fix_dims(dims[-2:])
        batch = _broadcast(a, [batch, dims[:-2]])
    return (*batch, query[-2], value[-1])


def _broadcast(a: Analysis, operands: Sequence[Dims]) -> Dims:
    rank = max(len(dims) for dims in operands)
    result: list[Labels | None] = [None] * rank
    for dims in operands:
        for d, labels in enumerate(dims):
            at = d + rank - len(dims)
            present = result[at]
            if present is None or len(present) < len(labels):
                result[at] = labels
            elif len(present) == len(labels):
                a.channels.unite(present, labels)
    return tuple(labels for labels in result if labels is not None)


def _contraction(a: Analysis, weight: Any, dim: int) -> None:
    a.summed.append(a.dims[weight][dim])
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        a.contractions.append((str(weight.target), dim))
