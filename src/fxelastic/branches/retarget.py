"""Change the outer layers of a block's copy to other shapes, keeping overlapping weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fxelastic.branches.propagation import sizes
from fxelastic.branches.trainable import BatchNorm
from fxelastic.ir.operators import attribute

_ATEN = torch.ops.aten
_CONVOLUTIONS = (_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.conv3d.default)
_LINEAR = _ATEN.linear.default
_PASSING = (
    _ATEN.relu.default,
    _ATEN.relu6.default,
    _ATEN.gelu.default,
    _ATEN.silu.default,
    _ATEN.sigmoid.default,
    _ATEN.tanh.default,
    _ATEN.hardtanh.default,
    _ATEN.hardswish.default,
    _ATEN.leaky_relu.default,
    _ATEN.elu.default,
    _ATEN.clamp.default,
)


def retarget(module: fx.GraphModule, operand: Tensor, result: Tensor) -> bool:
    """Fit a copied block between other shapes, where its outer layers allow it.

    They do where the input is read by convolutions (not grouped) or linear layers alone, and the
    output comes from one, with a batch norm and elementwise operators in between. Strides are
    multiplied by what the sizes fall in addition. Whether the sizes then agree is for
    `propagate` to find out.

    Args:
        module: The copy; changed in place where this returns True, and partly where it returns
            False.
        operand: Fake tensor of the new input.
        result: Fake tensor of the new output.

    Returns:
        Whether the layers could be changed.
    """
    placeholder = next(node for node in module.graph.nodes if node.op == "placeholder")
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    last = output.args[0]
    if not isinstance(last, fx.Node) or last is placeholder:
        return False
    old_in, old_out = placeholder.meta["val"], last.meta["val"]
    if (old_in.dim(), old_out.dim()) != (operand.dim(), result.dim()):
        return False
    return (
        _fit_input(module, placeholder, old_in, operand)
        and _fit_output(module, last, old_out, result)
        and _fit_strides(placeholder, operand, result, old_in, old_out)
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
    while node.target in _PASSING or _batch_norm(module, node) is not None:
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


def _fit_strides(
    value: fx.Node, operand: Tensor, result: Tensor, old_in: Tensor, old_out: Tensor
) -> bool:
    """Multiply the strides of the layers that read the input by the missing factors."""
    factors = []
    for d in range(2, min(operand.dim(), result.dim())):
        ends = [sizes(v)[d] for v in (operand, result, old_in, old_out)]
        if not all(isinstance(size, int) and size > 0 for size in ends):
            return False
        new_in, new_out, was_in, was_out = (int(size) for size in ends)
        wanted, had = round(new_in / new_out), max(1, round(was_in / was_out))
        if wanted % had:
            return False
        factors.append(max(1, wanted // had))
    if all(factor == 1 for factor in factors):
        return True
    for reader in tuple(value.users):  # assigning arguments changes the order of the users
        if reader.target not in _CONVOLUTIONS:
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
    if node.target is _LINEAR:
        return -1
    groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    return 1 if node.target in _CONVOLUTIONS and groups == 1 else None


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
    path, _, name = target.rpartition(".")
    owner = module.get_submodule(path)
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
    """A tensor with another size in one dimension: cut, or repeated from its beginning."""
    old = value.shape[dim]
    if size <= old:
        return value.narrow(dim, 0, size).clone(memory_format=torch.contiguous_format)
    whole, rest = divmod(size, old)
    return torch.cat([*[value] * whole, value.narrow(dim, 0, rest)], dim)
