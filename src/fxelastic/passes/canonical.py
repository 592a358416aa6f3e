"""Rewrites that make a captured graph canonical, each in place.

- `drop_idle_casts` drops conversions that convert nothing. ``x.to(float32)`` of a float32 tensor
  returns ``x`` itself, and the tracer then calls every later use of ``x`` by the conversion's name:
  a norm's cast would take the place of the residual stream, with the module path of the norm.
- `replace_copies` replaces ``aten.copy``, which functionalisation makes of a write to a whole
  tensor and which has no gradient.
- `fill_empty` fills memory that a model allocates and does not fill. The model writes to it later,
  but a cut may come between two writes, and random numbers would cross it.
- `drop_empty_parts` drops what `torch.cat` ignores: the tensor without elements with which an empty
  cache begins. A result then extends the past keys themselves.
- `name_squeezed_dimensions` names the dimensions that a squeeze removes: dimensions of size 1, but
  never the batch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxelastic.ir.operators import is_tensor, operator_name

_CONVERSIONS = ("aten.to", "aten.type_as", "aten._to_copy")


def drop_idle_casts(graph: fx.Graph) -> None:
    """Replace conversions to the same dtype, device and layout by their operand."""
    for node in list(graph.nodes):
        if node.op != "call_function" or operator_name(node) not in _CONVERSIONS:
            continue
        source = node.args[0]
        if not isinstance(source, fx.Node) or not (is_tensor(source) and is_tensor(node)):
            continue
        if _same_type(source, node) and not _copies(node):
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _same_type(source: fx.Node, node: fx.Node) -> bool:
    before, after = source.meta["val"], node.meta["val"]
    return bool(
        before.dtype == after.dtype
        and before.device == after.device
        and before.layout == after.layout
        and before.stride() == after.stride()
    )


def _copies(node: fx.Node) -> bool:
    """Whether the model asks for a copy or a memory format."""
    if node.kwargs.get("memory_format") is not None or node.kwargs.get("copy"):
        return True
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in arguments), node.args, strict=False))
    return bool(given.get("copy")) or given.get("memory_format") is not None


_ATEN = torch.ops.aten


def replace_copies(graph: fx.Graph) -> None:
    """Replace each ``aten.copy(destination, source)``, which torch can't differentiate.

    If the source has the result's shape, strides and dtype, it is the result. Otherwise a
    ``slice_scatter`` overwrites the whole destination: it keeps the destination's layout, as a copy
    does, and has a gradient.

    Args:
        graph: A functional graph; changed in place.
    """
    for node in list(graph.nodes):
        if operator_name(node) != "aten.copy":
            continue
        destination, source = node.args[:2]
        assert isinstance(destination, fx.Node)
        assert isinstance(source, fx.Node)
        result, value = node.meta["val"], source.meta["val"]
        if _same_layout(value, result):
            node.replace_all_uses_with(source)
        elif result.dim() == 0:
            with graph.inserting_before(node):
                new = _like(graph, node, _ATEN.to.dtype, source, result.dtype)
            node.replace_all_uses_with(new)
        else:
            with graph.inserting_before(node):
                if value.shape != result.shape:
                    source = _like(graph, node, _ATEN.expand_as.default, source, destination)
                    with value.fake_mode:
                        source.meta["val"] = value.expand_as(result)
                args = (destination, source, 0, 0, sys.maxsize)
                new = _like(graph, node, _ATEN.slice_scatter.default, *args)
            node.replace_all_uses_with(new)
        graph.erase_node(node)


def _like(
    graph: fx.Graph, node: fx.Node, target: torch._ops.OpOverload, *args: fx.node.Argument
) -> fx.Node:
    new = graph.create_node("call_function", target, args, name=target._opname)
    new.meta = dict(node.meta)
    return new


def _same_layout(one: Tensor, other: Tensor) -> bool:
    """Whether two fakes are known to have the same shape, strides and dtype."""
    return (
        one.dtype == other.dtype
        and one.dim() == other.dim()
        and (*one.shape, *one.stride()) == (*other.shape, *other.stride())
    )


_FILLED: Mapping[Any, Any] = {
    _ATEN.empty.memory_format: _ATEN.zeros.default,
    _ATEN.empty_like.default: _ATEN.zeros_like.default,
    _ATEN.new_empty.default: _ATEN.new_zeros.default,
}


def fill_empty(graph: fx.Graph) -> None:
    """Replace every operator that allocates memory without filling it by one that fills zeros.

    Args:
        graph: A functional graph; changed in place.
    """
    for node in graph.nodes:
        filled = _FILLED.get(node.target)
        if filled is not None:
            node.target = filled
            known = {argument.name for argument in filled._schema.arguments}
            node.kwargs = {name: value for name, value in node.kwargs.items() if name in known}


def drop_empty_parts(graph: fx.Graph) -> None:
    """Drop the parts of shape (0,) of each ``cat``, and each ``cat`` that another one reads alone.

    Args:
        graph: A functional graph; changed in place.
    """
    for node in list(graph.nodes):
        if node.target is not _ATEN.cat.default:
            continue
        parts: Any = node.args[0]
        value = node.meta["val"]
        left = [part for part in parts if not _is_ignored(part, value)]
        if 0 < len(left) < len(parts):
            node.update_arg(0, left)
        if len(left) == 1 and all(reader.target is _ATEN.cat.default for reader in node.users):
            node.replace_all_uses_with(left[0])
            graph.erase_node(node)


def _is_ignored(part: fx.Node, result: Tensor) -> bool:
    """Whether ``cat`` ignores a part, as it does with empty tensors of one dimension."""
    value = part.meta["val"]
    return tuple(value.shape) == (0,) and result.dim() > 1 and value.dtype == result.dtype


_SQUEEZE = torch.ops.aten.squeeze


def name_squeezed_dimensions(graph: fx.Graph) -> None:
    """Rewrite each squeeze as ``squeeze(dims)`` of the dimensions that it removes.

    A squeeze without dimensions also drops the batch of a single sample. Exporters need a fixed
    number of dimensions and keep the batch, so the capture does too. A named dimension that is not
    of size 1 stays in torch, where ONNX raises an error.

    Args:
        graph: A functional graph.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (
            _SQUEEZE.default,
            _SQUEEZE.dim,
            _SQUEEZE.dims,
        ):
            continue
        source, *named = node.args
        sizes = source.meta["val"].shape
        # A size that is an int is the same for every batch.
        ones = [i for i, size in enumerate(sizes) if isinstance(size, int) and size == 1]
        wanted = _wanted(named, len(sizes))
        dims = [i for i in ones if i in wanted]
        if not dims:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif dims != wanted:
            node.target, node.args = _SQUEEZE.dims, (source, dims)


def _wanted(named: list[Any], n_dims: int) -> list[int]:
    """The dimensions that an operator names, or all if it names none."""
    if not named:
        return list(range(n_dims))
    dims = named[0] if isinstance(named[0], (list, tuple)) else [named[0]]
    return sorted(dim % max(n_dims, 1) for dim in dims)
