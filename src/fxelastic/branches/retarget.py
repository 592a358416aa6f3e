"""Change the outer layers of a block's copy to other shapes and keep overlapping weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxelastic.branches.propagation import example_shapes, sizes
from fxelastic.branches.trainable import BatchNorm
from fxelastic.ir.graph_symbols import GraphSymbol
from fxelastic.ir.operators import (
    ACTIVATIONS,
    CONVOLUTIONS,
    attribute,
    groups_of,
    operator_name,
    owner_of,
)

#: Operators that a last layer's channels pass through unchanged.
_PASSING = ACTIVATIONS | {"aten.clamp"}


def retarget(
    module: fx.GraphModule, operand: Tensor, result: Tensor, symbols: Sequence[GraphSymbol]
) -> bool:
    """Fit a copied block between other shapes, if its outer layers allow it.

    They do if only linear layers or convolutions without groups read the input, and the output
    comes from such a layer, with a batch norm and activations in between. Strides are multiplied
    by the additional reduction of the sizes. The caller checks with `misfit` whether the sizes
    then agree.

    Args:
        module: The copy, changed in place; partly changed if the result is False.
        operand: Fake tensor of the new input.
        result: Fake tensor of the new output.
        symbols: The partition's symbols.

    Returns:
        Whether the layers could be changed.
    """
    placeholder = next(node for node in module.graph.nodes if node.op == "placeholder")
    last = module.graph.output_node().args[0]
    if not isinstance(last, fx.Node) or last is placeholder:
        return False
    old_in, old_out = placeholder.meta["val"], last.meta["val"]
    if (old_in.dim(), old_out.dim()) != (operand.dim(), result.dim()):
        return False
    ends = [example_shapes(v, symbols)[0][2:] for v in (operand, result, old_in, old_out)]
    return (
        _fit_input(module, placeholder, old_in, operand)
        and _fit_output(module, last, old_out, result)
        and _fit_strides(placeholder, ends)
    )


def _fit_input(module: fx.GraphModule, value: fx.Node, old: Tensor, new: Tensor) -> bool:
    if old.dim() < 2:
        return False
    for reader in value.users:
        channel = _channel(reader)
        if channel is None or reader.args[0] is not value:
            return False
        before, after = sizes(old)[channel], sizes(new)[channel]
        if before == after:
            continue
        if not isinstance(after, int) or not _resize(module, reader.args[1], 1, after):
            return False
    return bool(value.users)


def _fit_output(module: fx.GraphModule, value: fx.Node, old: Tensor, new: Tensor) -> bool:
    node, passed = value, []
    while operator_name(node) in _PASSING or _batch_norm(module, node) is not None:
        passed.append(node)
        operand = node.args[0]
        if not isinstance(operand, fx.Node) or len(operand.users) != 1:
            return False
        node = operand
    channel = _channel(node)
    if channel is None:
        return False
    before, after = sizes(old)[channel], sizes(new)[channel]
    if before == after:
        return True
    if not isinstance(after, int) or not _resize(module, node.args[1], 0, after):
        return False
    bias = node.args[2] if len(node.args) > 2 else None
    if bias is not None and not _resize(module, bias, 0, after):
        return False
    for other in passed:
        norm = _batch_norm(module, other)
        if norm is not None:
            _resize_norm(norm, after)
    return True


def _fit_strides(value: fx.Node, ends: Sequence[Sequence[int]]) -> bool:
    """Multiply the strides of the layers that read the input by the missing factors.

    Args:
        value: The input.
        ends: The sizes after the channels of the new input and output, and of the old ones, for
            the example's sizes.
    """
    factors = []
    for sizes_ in zip(*ends, strict=False):
        if min(sizes_) < 1:
            return False
        new_in, new_out, was_in, was_out = sizes_
        wanted, had = round(new_in / new_out), max(1, round(was_in / was_out))
        if wanted % had:
            return False
        factors.append(max(1, wanted // had))
    if all(factor == 1 for factor in factors):
        return True
    for reader in tuple(value.users):  # assigning arguments changes the order of the users
        if operator_name(reader) not in CONVOLUTIONS:
            return False
        arguments: list[Any] = list(reader.args)
        while len(arguments) < 4:
            arguments.append(None if len(arguments) == 2 else [1] * len(factors))
        strides = arguments[3]
        strides = list(strides) * len(factors) if len(strides) == 1 else list(strides)
        arguments[3] = [s * f for s, f in zip(strides, factors, strict=True)]
        reader.args = tuple(arguments)
    return True


def _channel(node: fx.Node) -> int | None:
    """The dimension of the channels of a layer whose weight can be resized."""
    weight = node.args[1] if len(node.args) > 1 else None
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or len(weight.users) != 1:
        return None
    if operator_name(node) == "aten.linear":
        return -1
    return 1 if operator_name(node) in CONVOLUTIONS and groups_of(node) == 1 else None


def _batch_norm(module: fx.GraphModule, node: fx.Node) -> BatchNorm | None:
    if node.op != "call_module":
        return None
    called = module.get_submodule(str(node.target))
    return called if isinstance(called, BatchNorm) else None


def _resize(module: fx.GraphModule, operand: Any, dim: int, size: int) -> bool:
    if not isinstance(operand, fx.Node) or operand.op != "get_attr" or len(operand.users) != 1:
        return False
    target = str(operand.target)
    value = attribute(module, target)
    if not isinstance(value, nn.Parameter):
        return False
    owner, name = owner_of(module, target)
    owner.register_parameter(name, nn.Parameter(resized(value.detach(), dim, size)))
    return True


def _resize_norm(norm: BatchNorm, size: int) -> None:
    norm.num_features = size
    for name in ("weight", "bias"):
        value = getattr(norm, name)
        if value is not None:
            norm.register_parameter(name, nn.Parameter(resized(value.detach(), 0, size)))
    for name in ("running_mean", "running_var"):
        norm.register_buffer(name, resized(getattr(norm, name), 0, size))


def resized(value: Tensor, dim: int, size: int) -> Tensor:
    """A tensor with another size in one dimension: cut, or repeated from the start."""
    old = value.shape[dim]
    if size <= old:
        return value.narrow(dim, 0, size).clone(memory_format=torch.contiguous_format)
    whole, rest = divmod(size, old)
    return torch.cat([*[value] * whole, value.narrow(dim, 0, rest)], dim)
