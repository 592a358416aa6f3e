"""How each operator ties the channels of its operands to those of its result.

A rule returns the labels of the result, or a list of them for an operator with several results,
or None where it does not know the operator's form; then all that it touches is fixed. What mixes
channels other than by a sum of products (a norm, a softmax, a mean) fixes them: removing one would
change the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from fxelastic.branches.pruning.labels import FIXED, Dims, Labels, fixed
from fxelastic.branches.pruning.reshaping import reshaped
from fxelastic.ir.operators import operator_name

if TYPE_CHECKING:
    from fxelastic.branches.pruning.analysis import Analysis

Rule = Callable[["Analysis", fx.Node], "Dims | list[Dims] | None"]


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _mixes(a: Analysis, node: fx.Node, dims: Sequence[Labels]) -> None:
    a.channels.fix_dims(dims, f"{operator_name(node).removeprefix('aten.')} mixes the channels")


def _dimension(d: int, rank: int) -> int:
    return d + rank if d < 0 else d


# --- elementwise -----------------------------------------------------------------------------


def pointwise(a: Analysis, node: fx.Node) -> Dims:
    """Broadcast the operands; aligned indices go together."""
    rank = len(a.shape(node))
    result = [fixed(size) for size in a.shape(node)]
    known = [False] * rank
    for operand in node.all_input_nodes:
        dims = a.dims.get(operand)
        for d, labels in enumerate(dims or ()):
            at = d + rank - len(dims or ())
            if len(labels) != len(result[at]):
                continue  # a dimension of size 1 that is broadcast
            if known[at]:
                a.channels.unite(result[at], labels)
            else:
                result[at], known[at] = labels, True
    return tuple(result)


def same(a: Analysis, node: fx.Node) -> Dims:
    """What changes no index."""
    return a.dims[_operand(node)]


def constant(a: Analysis, node: fx.Node) -> Dims:
    """What is made of nothing that has channels."""
    return tuple(fixed(size) for size in a.shape(node))


def prelu(a: Analysis, node: fx.Node) -> Dims:
    """One slope, or one for each channel."""
    dims, (slope,) = a.dims[_operand(node)], a.dims[node.args[1]]  # type: ignore[index]
    if len(slope) > 1:
        a.channels.unite(dims[1], slope)
    return dims


def _operand(node: fx.Node) -> fx.Node:
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    return operand


# --- products --------------------------------------------------------------------------------


def convolution(a: Analysis, node: fx.Node) -> Dims:
    """Convolutions; of grouped ones whole groups, or the same channels of each."""
    x, weight = a.dims[_operand(node)], a.dims[node.args[1]]  # type: ignore[index]
    groups = int(_argument(node, 6, "groups", 1))
    _mixes(a, node, x[2:])
    a.channels.fix_dims(weight[2:])
    bias = _argument(node, 2, "bias")
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
    """Whether a grouped convolution loses whole groups, as a depthwise one can only do."""
    return a.policy.whole_groups or a.shape(node.args[1])[1] == 1  # type: ignore[arg-type]


def transposed_convolution(a: Analysis, node: fx.Node) -> Dims | None:
    """Transposed convolutions without groups."""
    if int(_argument(node, 6, "groups", 1)) != 1:
        return None
    x, weight = a.dims[_operand(node)], a.dims[node.args[1]]  # type: ignore[index]
    _mixes(a, node, x[2:])
    a.channels.fix_dims(weight[2:])
    bias = _argument(node, 2, "bias")
    if isinstance(bias, fx.Node):
        a.channels.unite(weight[1], a.dims[bias][0])
    a.channels.unite(x[1], weight[0])
    _contraction(a, node.args[1], 0)
    return (x[0], weight[1], *(fixed(size) for size in a.shape(node)[2:]))


def linear(a: Analysis, node: fx.Node) -> Dims:
    """``x @ weight.T + bias``."""
    x, weight = a.dims[_operand(node)], a.dims[node.args[1]]  # type: ignore[index]
    bias = _argument(node, 2, "bias")
    if isinstance(bias, fx.Node):
        a.channels.unite(weight[0], a.dims[bias][0])
    a.channels.unite(x[-1], weight[1])
    _contraction(a, node.args[1], 1)
    return (*x[:-1], weight[0])


def product(a: Analysis, node: fx.Node) -> Dims | None:
    """Matrix products of two tensors, batched ones too."""
    left, right = node.args[:2]
    return _product(a, left, right)


def _product(a: Analysis, left: Any, right: Any) -> Dims | None:
    x, y = a.dims[left], a.dims[right]
    if len(x) < 2 or len(y) < 2:
        return None
    if left not in a.held and right not in a.held:
        # Queries by keys: what is summed over is no channel that a weight reads.
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
    """Scaled dot products; heads go as a whole, and with the queries that share keys."""
    query, key, value = (a.dims[operand] for operand in node.args[:3])  # type: ignore[index]
    mask = _argument(node, 3, "attn_mask")
    # Fewer dimensions of a head would change the scale, which is their number by default.
    _mixes(a, node, (query[-1], key[-1], key[-2], value[-2], query[-2]))
    heads = _argument(node, 7, "enable_gqa", False)
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


# --- norms and reductions --------------------------------------------------------------------


def batch_norm_module(a: Analysis, node: fx.Node) -> Dims:
    """Each channel alone, with statistics of its own."""
    dims = a.dims[_operand(node)]
    target = str(node.target)
    if target in a.norms:
        a.channels.unite(a.norms[target], dims[1])
    a.norms[target] = dims[1]
    return dims


def channel_norm(a: Analysis, node: fx.Node) -> Dims:
    """Batch and instance norms: each channel alone."""
    dims = a.dims[_operand(node)]
    for operand in node.args[1:5]:
        if isinstance(operand, fx.Node):
            a.channels.unite(dims[1], a.dims[operand][0])
    return dims


def group_norm(a: Analysis, node: fx.Node) -> Dims:
    """Channels of a group are mixed: a group goes as a whole."""
    dims, groups = a.dims[_operand(node)], node.args[1]
    assert isinstance(groups, int)
    if groups == 1:
        _mixes(a, node, (dims[1],))
    for group in dims[1].reshape(groups, -1):
        a.channels.unite_all(group)
    for operand in node.args[2:4]:
        if isinstance(operand, fx.Node):
            a.channels.unite(dims[1], a.dims[operand][0])
    _mixes(a, node, dims[2:])
    return dims


def weight_norm(a: Analysis, node: fx.Node) -> Dims:
    """A weight with a norm of its own for each index of one dimension."""
    value, scale = node.args[:2]
    dims, d = list(a.dims[value]), int(_argument(node, 2, "dim", 0))  # type: ignore[index]
    for i, (labels, other) in enumerate(zip(dims, a.dims[scale], strict=True)):  # type: ignore[index]
        if i == d:
            a.channels.unite(labels, other)
        else:
            _mixes(a, node, (labels,))
    return tuple(dims)


def layer_norm(a: Analysis, node: fx.Node) -> Dims:
    """Layer and RMS norms: the normalised dimensions stay, unless the policy lets them go."""
    dims, shape = a.dims[_operand(node)], node.args[1]
    normalised = dims[len(dims) - len(shape) :]  # type: ignore[arg-type]
    if a.policy.approximate:
        a.normalised.extend(normalised)
    else:
        _mixes(a, node, normalised)
    for operand in node.args[2:4]:
        if isinstance(operand, fx.Node):
            for labels, own in zip(normalised, a.dims[operand], strict=True):
                a.channels.unite(labels, own)
    return dims


def along(a: Analysis, node: fx.Node) -> Dims:
    """Softmax and the like: the dimension stays."""
    dims = a.dims[_operand(node)]
    _mixes(a, node, (dims[int(node.args[1])],))  # type: ignore[arg-type]
    return dims


def reduction(a: Analysis, node: fx.Node) -> Dims | None:
    """A sum or mean over dimensions, which stay."""
    dims = a.dims[_operand(node)]
    which = _argument(node, 1, "dim")
    kept = bool(_argument(node, 2, "keepdim", False))
    if which is None or which == []:
        which = range(len(dims))
    over = {_dimension(d, len(dims)) for d in ([which] if isinstance(which, int) else which)}
    _mixes(a, node, [dims[d] for d in sorted(over)])
    result = (fixed(1) if d in over else dims[d] for d in range(len(dims)) if kept or d not in over)
    return tuple(result)


def spatial(a: Analysis, node: fx.Node) -> Dims:
    """Pooling, interpolation and the like: batch and channels pass."""
    dims, size = a.dims[_operand(node)], a.shape(node)
    _mixes(a, node, dims[2:])
    return (*dims[:2], *(fixed(n) for n in size[2:]))


# --- changes of shape ------------------------------------------------------------------------


def reshape(a: Analysis, node: fx.Node) -> Dims:
    """Views, flattening and unflattening."""
    operand = _operand(node)
    return reshaped(a.channels, a.dims[operand], a.shape(operand), a.shape(node), a.policy.factor)


def permutation(a: Analysis, node: fx.Node) -> Dims:
    """Dimensions in another order."""
    dims = a.dims[_operand(node)]
    order = node.args[1]
    return tuple(dims[_dimension(int(d), len(dims))] for d in order)  # type: ignore[union-attr, arg-type]


def transposition(a: Analysis, node: fx.Node) -> Dims:
    """Two dimensions change places."""
    dims = list(a.dims[_operand(node)])
    one, other = (int(d) for d in node.args[1:3]) if len(node.args) > 2 else (-2, -1)  # type: ignore[arg-type]
    dims[one], dims[other] = dims[other], dims[one]
    return tuple(dims)


def unsqueeze(a: Analysis, node: fx.Node) -> Dims:
    """One more dimension."""
    dims = list(a.dims[_operand(node)])
    dims.insert(_dimension(int(node.args[1]), len(dims) + 1), fixed(1))  # type: ignore[arg-type]
    return tuple(dims)


def squeeze(a: Analysis, node: fx.Node) -> Dims:
    """Fewer dimensions of size 1."""
    dims, rest = a.dims[_operand(node)], iter(a.shape(node))
    result, wanted = [], next(rest, None)
    for labels in dims:
        if wanted is not None and len(labels) == wanted:
            result.append(labels)
            wanted = next(rest, None)
    return tuple(result)


def expansion(a: Analysis, node: fx.Node) -> Dims:
    """Dimensions of size 1 are repeated."""
    dims, size = a.dims[_operand(node)], a.shape(node)
    result = [fixed(n) for n in size]
    for d, labels in enumerate(dims):
        at = d + len(size) - len(dims)
        if len(labels) == size[at]:
            result[at] = labels
    return tuple(result)


def repeat_interleave(a: Analysis, node: fx.Node) -> Dims | None:
    """Each index several times in a row (keys shared by several queries)."""
    dims, times, d = a.dims[_operand(node)], node.args[1], _argument(node, 2, "dim")
    if not isinstance(times, int) or d is None:
        return None
    d = _dimension(d, len(dims))
    return tuple(np.repeat(x, times) if i == d else x for i, x in enumerate(dims))


def channel_shuffle(a: Analysis, node: fx.Node) -> Dims:
    """Groups are interleaved: the same places of all groups go together."""
    dims, groups = a.dims[_operand(node)], node.args[1]
    assert isinstance(groups, int)
    rows = dims[1].reshape(groups, -1)
    for column in rows.T:
        a.channels.unite_all(np.ascontiguousarray(column))
    return (dims[0], np.ascontiguousarray(rows.T).reshape(-1), *dims[2:])


def pixel_shuffle(a: Analysis, node: fx.Node) -> Dims:
    """Several channels become one, at a larger size."""
    dims, size = a.dims[_operand(node)], a.shape(node)
    rows = dims[-3].reshape(size[-3], -1)
    for row in rows:
        a.channels.unite_all(row)
    _mixes(a, node, dims[-2:])
    return (*dims[:-3], rows[:, 0].copy(), fixed(size[-2]), fixed(size[-1]))


# --- parts and joins -------------------------------------------------------------------------


def concatenation(a: Analysis, node: fx.Node) -> Dims:
    """Along one dimension the labels stand in a row; along the others they are the same."""
    operands = [a.dims[operand] for operand in node.args[0]]  # type: ignore[union-attr, index]
    d = _dimension(int(_argument(node, 1, "dim", 0)), len(operands[0]))
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
    d = _dimension(int(_argument(node, 1, "dim", 0)), len(result) + 1)
    result.insert(d, fixed(len(operands)))
    return tuple(result)


def parts(a: Analysis, node: fx.Node) -> list[Dims]:
    """Chunks and splits: each has the labels of its stretch."""
    dims = a.dims[_operand(node)]
    d = _dimension(int(_argument(node, 2, "dim", 0)), len(dims))
    result, start = [], 0
    for value in node.meta["val"]:
        stop = start + int(value.shape[d])
        result.append(tuple(x[start:stop] if i == d else x for i, x in enumerate(dims)))
        start = stop
    return result


def unbind(a: Analysis, node: fx.Node) -> list[Dims]:
    """Each index alone: the dimension stays."""
    dims = a.dims[_operand(node)]
    d = _dimension(int(_argument(node, 1, "dim", 0)), len(dims))
    _mixes(a, node, (dims[d],))
    return [tuple(x for i, x in enumerate(dims) if i != d) for _ in node.meta["val"]]


def item(a: Analysis, node: fx.Node) -> Dims | None:
    """One of several results."""
    found = a.parts.get(_operand(node))
    index = node.args[1]
    return found[index] if found is not None and isinstance(index, int) else None


def select(a: Analysis, node: fx.Node) -> Dims:
    """One index: the dimension stays."""
    dims = a.dims[_operand(node)]
    d = _dimension(int(node.args[1]), len(dims))  # type: ignore[arg-type]
    _mixes(a, node, (dims[d],))
    return tuple(labels for i, labels in enumerate(dims) if i != d)


def slicing(a: Analysis, node: fx.Node) -> Dims | None:
    """A stretch of one dimension."""
    dims = a.dims[_operand(node)]
    d = _dimension(int(_argument(node, 1, "dim", 0)), len(dims))
    start, stop = _argument(node, 2, "start"), _argument(node, 3, "end")
    step = _argument(node, 4, "step", 1)
    if any(isinstance(value, fx.Node) for value in (start, stop, step)):
        return None
    if step != 1 and (a.channels.roots(dims[d]) != FIXED).any():
        _mixes(a, node, (dims[d],))
    return tuple(x[slice(start, stop, step)] if i == d else x for i, x in enumerate(dims))


def padding(a: Analysis, node: fx.Node) -> Dims:
    """Padded dimensions stay."""
    dims, size = a.dims[_operand(node)], a.shape(node)
    pads = list(node.args[1])  # type: ignore[arg-type]
    padded = {len(dims) - 1 - i // 2 for i, amount in enumerate(pads) if amount}
    _mixes(a, node, [dims[d] for d in sorted(padded)])
    return tuple(fixed(size[d]) if d in padded else labels for d, labels in enumerate(dims))


def indexing(a: Analysis, node: fx.Node) -> Dims | None:
    """A table read at fixed places, as relative position biases are; what is indexed stays."""
    dims, indices = a.dims[_operand(node)], list(node.args[1])  # type: ignore[arg-type]
    which = [d for d, index in enumerate(indices) if index is not None]
    if not which or which != list(range(which[0], which[-1] + 1)):
        return None
    shape = a.shape(node)
    n_new = len(shape) - (len(dims) - len(which))
    for index in indices:
        if isinstance(index, fx.Node):
            a.channels.fix_dims(a.dims.get(index, ()))
    _mixes(a, node, [dims[d] for d in which])
    new = [fixed(size) for size in shape[which[0] : which[0] + n_new]]
    return (*dims[: which[0]], *new, *dims[which[-1] + 1 :])


def embedding(a: Analysis, node: fx.Node) -> Dims:
    """Rows of a table: their number stays."""
    table, places = a.dims[_operand(node)], a.dims[node.args[1]]  # type: ignore[index]
    _mixes(a, node, (table[0],))
    a.channels.fix_dims(places)
    return (*(fixed(len(labels)) for labels in places), table[1])


def untouched_dimension(a: Analysis, node: fx.Node) -> Dims:
    """What moves indices along dimensions (roll, flip, cumsum): these stay."""
    dims = a.dims[_operand(node)]
    which = node.args[-1]
    for d in [which] if isinstance(which, int) else which:  # type: ignore[union-attr]
        _mixes(a, node, (dims[int(d)],))  # type: ignore[arg-type]
    return dims


RULES: dict[str, Rule] = {
    "pointwise": pointwise,
    "constant": constant,
    "module:batch_norm": batch_norm_module,
    "getitem": item,
    **dict.fromkeys(("aten.conv1d", "aten.conv2d", "aten.conv3d"), convolution),
    **dict.fromkeys(
        ("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d"),
        transposed_convolution,
    ),
    "aten.linear": linear,
    **dict.fromkeys(("aten.matmul", "aten.mm", "aten.bmm"), product),
    "aten.addmm": added_product,
    "aten.einsum": einsum,
    "aten.scaled_dot_product_attention": attention,
    **dict.fromkeys(("aten.batch_norm", "aten.instance_norm"), channel_norm),
    "aten.group_norm": group_norm,
    **dict.fromkeys(("aten.layer_norm", "aten.rms_norm"), layer_norm),
    "aten._weight_norm": weight_norm,
    **dict.fromkeys(("aten.softmax", "aten.log_softmax", "aten._softmax", "aten.cumsum"), along),
    **dict.fromkeys(("aten.mean", "aten.sum", "aten.amax", "aten.amin"), reduction),
    **dict.fromkeys(
        (
            "aten.max_pool1d",
            "aten.max_pool2d",
            "aten.max_pool3d",
            "aten.avg_pool1d",
            "aten.avg_pool2d",
            "aten.avg_pool3d",
            "aten.adaptive_avg_pool1d",
            "aten.adaptive_avg_pool2d",
            "aten.adaptive_avg_pool3d",
            "aten.adaptive_max_pool2d",
            "aten.upsample_nearest1d",
            "aten.upsample_nearest2d",
            "aten.upsample_nearest3d",
            "aten.upsample_bilinear2d",
            "aten.upsample_bicubic2d",
        ),
        spatial,
    ),
    **dict.fromkeys(
        (
            "aten.view",
            "aten.reshape",
            "aten._unsafe_view",
            "aten.flatten",
            "aten.unflatten",
            "aten.view_as",
            "aten.reshape_as",
        ),
        reshape,
    ),
    "aten.permute": permutation,
    **dict.fromkeys(("aten.transpose", "aten.t", "aten.mT", "aten.swapaxes"), transposition),
    "aten.unsqueeze": unsqueeze,
    "aten.squeeze": squeeze,
    **dict.fromkeys(("aten.expand", "aten.expand_as"), expansion),
    "aten.repeat_interleave": repeat_interleave,
    "aten.channel_shuffle": channel_shuffle,
    "aten.pixel_shuffle": pixel_shuffle,
    "aten.cat": concatenation,
    "aten.concat": concatenation,
    "aten.stack": stack,
    **dict.fromkeys(("aten.chunk", "aten.split", "aten.split_with_sizes"), parts),
    "aten.unbind": unbind,
    "aten.select": select,
    "aten.index": indexing,
    "aten.embedding": embedding,
    "aten.slice": slicing,
    **dict.fromkeys(("aten.roll", "aten.flip"), untouched_dimension),
    "aten.prelu": prelu,
    # Elementwise operators that torch does not tag as such.
    **dict.fromkeys(
        (
            "aten.relu6",
            "aten.hardtanh",
            "aten.hardswish",
            "aten.hardsigmoid",
            "aten.rsub",
            "aten.square",
            "aten.selu",
            "aten.celu",
            "aten.mish",
            "aten.softsign",
            "aten.tanhshrink",
        ),
        pointwise,
    ),
    **dict.fromkeys(("aten.pad", "aten.constant_pad_nd"), padding),
    **dict.fromkeys(
        (
            "aten.clone",
            "aten.contiguous",
            "aten.detach",
            "aten.alias",
            "aten.dropout",
            "aten.to",
            "aten._to_copy",
            "aten.zeros_like",
            "aten.ones_like",
            "aten.full_like",
        ),
        same,
    ),
}
