"""Rules of operators on single elements, norms, reductions and pooling."""

from __future__ import annotations

from torch import fx

from fxelastic.branches.pruning.channels import Analysis, Dims, fixed
from fxelastic.ir.operators import argument, operator_name


def first_operand(node: fx.Node) -> fx.Node:
    """The first argument, which is a node."""
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    return operand


def dimension(d: int, rank: int) -> int:
    """A dimension counted from the front."""
    return d + rank if d < 0 else d


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
    """Operators that change no index."""
    return a.dims[first_operand(node)]


def constant(a: Analysis, node: fx.Node) -> Dims:
    """Operators without operands that have channels."""
    return tuple(fixed(size) for size in a.shape(node))


def prelu(a: Analysis, node: fx.Node) -> Dims:
    """One slope, or one for each channel."""
    dims, (slope,) = a.dims[first_operand(node)], a.dims[node.args[1]]  # type: ignore[index]
    if len(slope) > 1:
        a.channels.unite(dims[1], slope)
    return dims


def batch_norm_module(a: Analysis, node: fx.Node) -> Dims:
    """Each channel is normalised alone."""
    dims = a.dims[first_operand(node)]
    target = str(node.target)
    if target in a.norms:
        a.channels.unite(a.norms[target], dims[1])
    a.norms[target] = dims[1]
    return dims


def channel_norm(a: Analysis, node: fx.Node) -> Dims:
    """Batch and instance norms: each channel alone; own statistics mix the other dimensions."""
    dims = a.dims[first_operand(node)]
    statistics = node.args[3:5]
    if "instance" in operator_name(node) or argument(node, 5, "training") or None in statistics:
        a.mixes(node, dims[2:])
    for operand in node.args[1:5]:
        if isinstance(operand, fx.Node):
            a.channels.unite(dims[1], a.dims[operand][0])
    return dims


def group_norm(a: Analysis, node: fx.Node) -> Dims:
    """A group's channels are mixed, so the group goes as a whole."""
    dims, groups = a.dims[first_operand(node)], node.args[1]
    assert isinstance(groups, int)
    if groups == 1:
        a.mixes(node, (dims[1],))
    for group in dims[1].reshape(groups, -1):
        a.channels.unite_all(group)
    for operand in node.args[2:4]:
        if isinstance(operand, fx.Node):
            a.channels.unite(dims[1], a.dims[operand][0])
    a.mixes(node, dims[2:])
    return dims


def weight_norm(a: Analysis, node: fx.Node) -> Dims:
    """A weight that is normalised for each index of one dimension."""
    value, scale = node.args[:2]
    dims, d = list(a.dims[value]), int(argument(node, 2, "dim", 0))  # type: ignore[index]
    for i, (labels, other) in enumerate(zip(dims, a.dims[scale], strict=True)):  # type: ignore[index]
        if i == d:
            a.channels.unite(labels, other)
        else:
            a.mixes(node, (labels,))
    return tuple(dims)


def layer_norm(a: Analysis, node: fx.Node) -> Dims:
    """Layer and RMS norms: the normalised dimensions stay, unless the policy is approximate."""
    dims, shape = a.dims[first_operand(node)], node.args[1]
    normalised = dims[len(dims) - len(shape) :]  # type: ignore[arg-type]
    if a.policy.approximate:
        a.normalised.extend(normalised)
    else:
        a.mixes(node, normalised)
    for operand in node.args[2:4]:
        if isinstance(operand, fx.Node):
            for labels, own in zip(normalised, a.dims[operand], strict=True):
                a.channels.unite(labels, own)
    return dims


def along(a: Analysis, node: fx.Node) -> Dims:
    """Softmax and cumulative sums: the dimension stays."""
    dims = a.dims[first_operand(node)]
    a.mixes(node, (dims[int(node.args[1])],))  # type: ignore[arg-type]
    return dims


def reduction(a: Analysis, node: fx.Node) -> Dims | None:
    """A sum or mean over dimensions, which stay."""
    dims = a.dims[first_operand(node)]
    which = argument(node, 1, "dim")
    kept = bool(argument(node, 2, "keepdim", False))
    if which is None or which == []:
        which = range(len(dims))
    over = {dimension(d, len(dims)) for d in ([which] if isinstance(which, int) else which)}
    a.mixes(node, [dims[d] for d in sorted(over)])
    result = (fixed(1) if d in over else dims[d] for d in range(len(dims)) if kept or d not in over)
    return tuple(result)


def spatial(a: Analysis, node: fx.Node) -> Dims:
    """Pooling and interpolation: batch and channels pass."""
    dims, size = a.dims[first_operand(node)], a.shape(node)
    a.mixes(node, dims[2:])
    return (*dims[:2], *(fixed(n) for n in size[2:]))
