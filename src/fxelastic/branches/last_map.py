"""The last linear map of a branch, and the target of its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxelastic.branches.trainable import BatchNorm
from fxelastic.ir.operators import (
    ACTIVATIONS,
    CONVOLUTIONS,
    COPIES,
    RESHAPES,
    argument,
    attribute,
    groups_of,
    operator_name,
)

_PRODUCTS = ("aten.addmm", "aten.mm", "aten.matmul")
#: Smaller scales are replaced by this share of the largest: their channels hardly count.
_LEAST_SCALE = 1e-3


@dataclass(frozen=True)
class LastMap:
    """A linear map whose result reaches the branch's output through invertible operators.

    Attributes:
        module: The branch.
        node: The map: a linear layer, or a convolution without groups.
        steps: The operators between the map and the output, the last one first.
        norm: The batch norm that reads the map's result, or None.
    """

    module: fx.GraphModule
    node: fx.Node
    steps: tuple[fx.Node, ...]
    norm: BatchNorm | None

    @property
    def matrix(self) -> Tensor:
        """A view of the map's weight, ``[d_in, d_out]``."""
        weight = _weight(self.module, self.node)
        return weight.detach() if _is_product(self.node) else weight.detach().flatten(1).mT

    @property
    def own_bias(self) -> Tensor | None:
        """The map's own bias, or None."""
        node = _bias(self.node)
        value = attribute(self.module, str(node.target)) if node is not None else None
        return value.detach() if isinstance(value, Tensor) else None

    @property
    def takes_constant(self) -> bool:
        """Whether a constant can be added to the map's result."""
        return self.own_bias is not None or (self.norm is not None and self.norm.bias is not None)

    def add_constant(self, constant: Tensor) -> None:
        """Add a constant to the map's result, in its own bias or in the norm's."""
        if self.own_bias is not None:
            self.own_bias.add_(constant)
        elif self.norm is not None and self.norm.bias is not None:
            self.norm.bias.detach().add_(_scale(self.norm)[0] * constant)

    def rows(self, values: Mapping[fx.Node, Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
        """The map's operand and the target of its result, a row for each position.

        Args:
            values: The values of a run of the branch, by node.
            target: The target of the branch, or of the operand of its last activation.

        Returns:
            Tensors ``[n, d_in]`` and ``[n, d_out]``.
        """
        for step in self.steps:
            target = self._undone(step, values, target)
        operand: Any = self.node.args[1 if operator_name(self.node) == "aten.addmm" else 0]
        x = values[operand]
        if "conv" not in operator_name(self.node):
            return x.reshape(-1, x.shape[-1]), target.reshape(-1, target.shape[-1])
        patches = _patches(self.node, x, _weight(self.module, self.node))
        return patches, target.flatten(2).mT.flatten(0, 1)

    def _undone(self, step: fx.Node, values: Mapping[fx.Node, Tensor], target: Tensor) -> Tensor:
        name = operator_name(step)
        chained = self._chained(step)
        if name == "aten.add":
            (rest,) = (operand for operand in step.args[:2] if operand is not chained)
            return target - (values[rest] if isinstance(rest, fx.Node) else rest)  # type: ignore[operator]
        if step.op == "call_module":
            norm = self.module.get_submodule(str(step.target))
            assert isinstance(norm, BatchNorm)
            scale, shift = _scale(norm)
            shape = [1, -1, *(1 for _ in range(target.dim() - 2))]
            return (target - shift.reshape(shape)) / scale.reshape(shape)
        if name == "aten.mul":
            (rest,) = (operand for operand in step.args[:2] if operand is not chained)
            return target / _safe(values[rest])  # type: ignore[index]
        if name in RESHAPES:
            return target.reshape(values[chained].shape)
        if name == "aten.permute":
            order = [int(d) % target.dim() for d in step.args[1]]  # type: ignore[union-attr, arg-type]
            return target.permute([order.index(d) for d in range(len(order))])
        if name == "aten.transpose":
            return target.transpose(*step.args[1:3])  # type: ignore[arg-type]
        return target

    def _chained(self, step: fx.Node) -> fx.Node:
        """The operand of a step that is on the chain from the map."""
        chain = {self.node, *self.steps}
        return next(operand for operand in step.all_input_nodes if operand in chain)


def last_map(module: fx.GraphModule) -> tuple[LastMap, fx.Node | None] | None:
    """Find the last linear map of a branch.

    Args:
        module: The branch, whose first result counts.

    Returns:
        The map, and the activation at the branch's end or None; None if there is no such map.
    """
    results = module.graph.output_node().args[0]
    last = results[0] if isinstance(results, tuple) else results
    if not isinstance(last, fx.Node):
        return None
    activation = None
    if operator_name(last) in ACTIVATIONS and isinstance(last.args[0], fx.Node):
        activation, last = last, last.args[0]
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    found = _search(module, last, (), order)
    if found is None:
        return None
    node, steps = found
    norms = [s for s in steps[-1:] if s.op == "call_module"]
    norm = module.get_submodule(str(norms[0].target)) if norms else None
    assert norm is None or isinstance(norm, BatchNorm)
    return LastMap(module, node, steps, norm), activation


def _search(
    module: fx.GraphModule, node: fx.Node, steps: tuple[fx.Node, ...], order: Mapping[fx.Node, int]
) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """The latest map that reaches a node through invertible operators."""
    if len(node.users) != 1:
        return None
    if _is_map(module, node):
        return node, steps
    name = operator_name(node)
    operands = [operand for operand in node.args[:2] if isinstance(operand, fx.Node)]
    if node.op == "call_module":
        if not isinstance(module.get_submodule(str(node.target)), BatchNorm):
            return None
    elif name == "aten.add":
        if node.kwargs.get("alpha", 1) != 1 or len(set(operands)) != len(operands):
            return None
        operands = [o for o in operands if _same_shape(o, node)]
    elif name == "aten.mul":
        held = [o for o in operands if o.op == "get_attr"]
        operands = [o for o in operands if o.op != "get_attr" and _same_shape(o, node)]
        if len(held) != 1:
            return None
    elif name in COPIES or name in RESHAPES or name in ("aten.permute", "aten.transpose"):
        operands = operands[:1]
    else:
        return None
    found = []
    for operand in operands:
        behind = _search(module, operand, (*steps, node), order)
        rest = [other for other in node.all_input_nodes if other is not operand]
        if behind is not None and not any(_depends(other, behind[0]) for other in rest):
            found.append(behind)
    return max(found, key=lambda pair: order[pair[0]], default=None)


def _is_map(module: fx.GraphModule, node: fx.Node) -> bool:
    name = operator_name(node)
    if name not in (*_PRODUCTS, "aten.linear", *CONVOLUTIONS - {"aten.conv3d"}):
        return False
    if name == "aten.addmm" and node.kwargs:
        return False  # scaled
    weight, bias = _weight_node(node), _bias(node)
    for value in (weight, bias):
        if value is not None and (value.op != "get_attr" or len(value.users) != 1):
            return False
    if weight is None:
        return False
    same = [n for n in module.graph.nodes if n.op == "get_attr" and n.target == weight.target]
    if len(same) != 1 or not isinstance(_weight(module, node), nn.Parameter):
        return False
    if _is_product(node):
        return _weight(module, node).dim() == 2
    padding = argument(node, 4, "padding")
    return name == "aten.linear" or (groups_of(node) == 1 and not isinstance(padding, str))


def _patches(node: fx.Node, x: Tensor, weight: Tensor) -> Tensor:
    """The patches that a convolution multiplies with its weight, a row for each position."""
    dims = weight.dim() - 2
    names = ("stride", "padding", "dilation")
    given = (argument(node, 3 + i, name) for i, name in enumerate(names))
    stride, padding, dilation = (_sizes(v, dims, i != 1) for i, v in enumerate(given))
    kernel = tuple(weight.shape[2:])
    if dims == 1:
        x, kernel = x.unsqueeze(2), (1, *kernel)
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    columns = F.unfold(x, kernel, dilation, padding, stride)
    return columns.mT.flatten(0, 1)


def _sizes(value: Any, dims: int, one: bool) -> tuple[int, ...]:
    given = tuple(int(v) for v in value) if value else (int(one),)
    return given * dims if len(given) == 1 else given


def _scale(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """The factor and the summand of a batch norm."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    weight = torch.ones_like(mean) if norm.weight is None else norm.weight.detach()
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach()
    scale = weight / torch.sqrt(variance + norm.eps)
    return _safe(scale), bias - mean * scale


def _safe(scale: Tensor) -> Tensor:
    least = _LEAST_SCALE * scale.abs().max().clamp_min(1e-12)
    sign = torch.where(scale < 0, -1.0, 1.0).to(scale.dtype)
    return sign * scale.abs().clamp_min(least)


def _depends(node: fx.Node, on: fx.Node) -> bool:
    pending, seen = [node], {node}
    while pending:
        for operand in pending.pop().all_input_nodes:
            if operand not in seen:
                seen.add(operand)
                pending.append(operand)
    return on in seen


def _same_shape(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta.get("val"), other.meta.get("val")
    return isinstance(a, Tensor) and isinstance(b, Tensor) and tuple(a.shape) == tuple(b.shape)


def _is_product(node: fx.Node) -> bool:
    """Whether the weight has the shape ``[d_in, d_out]``."""
    return operator_name(node) in _PRODUCTS


def _weight_node(node: fx.Node) -> fx.Node | None:
    weight = node.args[2] if operator_name(node) == "aten.addmm" else argument(node, 1, "weight")
    return weight if isinstance(weight, fx.Node) else None


def _bias(node: fx.Node) -> fx.Node | None:
    if _is_product(node):
        bias = node.args[0] if operator_name(node) == "aten.addmm" else None
    else:
        bias = argument(node, 2, "bias")
    return bias if isinstance(bias, fx.Node) else None


def _weight(module: fx.GraphModule, node: fx.Node) -> Tensor:
    weight = _weight_node(node)
    assert weight is not None
    value = attribute(module, str(weight.target))
    assert isinstance(value, Tensor)
    return value
