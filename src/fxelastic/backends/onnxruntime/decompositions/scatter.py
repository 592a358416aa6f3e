"""Scatters with a reduction, by scatters of ONNX.

ONNX has no mean, starts each reduction from the tensor that it writes to, and needs indices and
source of the same shape, whereas torch reads only the part of the source that has indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

_ATEN = torch.ops.aten


def scatter_reduce(
    value: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, include_self: bool = True
) -> Tensor:
    """Reduce the elements of ``source`` at each index into ``value``.

    Args:
        value: Any tensor.
        dim: The dimension of ``index``.
        index: int64, with as many dimensions as ``value``.
        source: At least as large as ``index`` in every dimension.
        reduce: One of "sum", "prod", "mean", "amax" and "amin".
        include_self: Whether the reduction includes the elements of ``value``.

    Returns:
        A tensor of the shape of ``value``.
    """
    source = _with_indices(source, index)
    if not include_self:
        value = value.scatter(dim, index, _neutral(reduce, value.dtype))
    if reduce != "mean":
        result: Tensor = _ATEN.scatter_reduce.two(value, dim, index, source, reduce)
        return result
    total = value.scatter_add(dim, index, source)
    start = torch.ones_like(total) if include_self else torch.zeros_like(total)
    count = start.scatter_add(dim, index, torch.ones_like(source))
    if not include_self:
        count = count.clamp(min=1)
    return total / count if total.is_floating_point() else total.floor_divide(count)


def index_reduce(
    value: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, include_self: bool = True
) -> Tensor:
    """Reduce the slices of ``source`` into the slices of ``value`` that ``index`` names."""
    shape = [1] * source.dim()
    shape[dim] = -1
    index = index.to(torch.int64).reshape(shape).expand_as(source)
    return scatter_reduce(value, dim, index, source, reduce, include_self)


def scatter(value: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Write the elements of ``source`` that have an index."""
    result: Tensor = _ATEN.scatter.src(value, dim, index, _with_indices(source, index))
    return result


def scatter_add(value: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Add the elements of ``source`` that have an index."""
    result: Tensor = _ATEN.scatter_add.default(value, dim, index, _with_indices(source, index))
    return result


def scatter_with(
    value: Tensor, dim: int, index: Tensor, source: Tensor | float, *, reduce: str
) -> Tensor:
    """Add or multiply elements, or one number, at the indices."""
    if not isinstance(source, Tensor):
        source = torch.full_like(index, source, dtype=value.dtype)
    return scatter_reduce(value, dim, index, source, {"add": "sum", "multiply": "prod"}[reduce])


def diagonal(value: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A diagonal of the matrices in two dimensions; other elements may be infinite."""
    matrices = value.movedim((dim1, dim2), (-2, -1))
    rows, columns = matrices.shape[-2:]
    if not isinstance(rows, int) or not isinstance(columns, int):
        result: Tensor = _ATEN.diagonal.default(value, offset, dim1, dim2)
        return result
    first = max(offset, 0) + columns * max(-offset, 0)
    length = max(0, min(rows - max(-offset, 0), columns - max(offset, 0)))
    places = torch.arange(length, device=value.device) * (columns + 1) + first
    return matrices.flatten(-2).index_select(-1, places)


def diag(value: Tensor, offset: int = 0) -> Tensor:
    """The diagonal of a matrix, or the matrix of a diagonal."""
    return value.diag_embed(offset) if value.dim() == 1 else diagonal(value, offset)


def diagonal_scatter(
    value: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Tensor:
    """Write a diagonal of the matrices in two dimensions."""
    matrices = value.movedim((dim1, dim2), (-2, -1))
    rows = torch.arange(matrices.shape[-2], device=value.device)[:, None]
    columns = torch.arange(matrices.shape[-1], device=value.device)
    places = (rows if offset >= 0 else columns).expand(matrices.shape[-2:])
    found = source.index_select(-1, places.flatten().clamp(max=source.shape[-1] - 1))
    found = found.unflatten(-1, matrices.shape[-2:])
    written = torch.where(columns - rows == offset, found, matrices)
    return written.movedim((-2, -1), (dim1, dim2))


def bincount(value: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """The number of occurrences of each integer, or the sum of its weights."""
    counts: Tensor = _ATEN.bincount.default(value, None, minlength)
    if weights is None:
        return counts
    weights = weights if weights.dtype == torch.float32 else weights.double()
    return torch.zeros_like(counts, dtype=weights.dtype).scatter_add(0, value.long(), weights)


def _with_indices(source: Tensor, index: Tensor) -> Tensor:
    """The part of ``source`` that has indices."""
    for dim, (have, need) in enumerate(zip(source.shape, index.shape, strict=True)):
        if not statically_known_true(have == need):
            source = source.narrow(dim, 0, need)
    return source


def _neutral(reduce: str, dtype: torch.dtype) -> float:
    """The neutral element of a reduction."""
    if reduce in ("sum", "mean", "prod"):
        return 1 if reduce == "prod" else 0
    if dtype.is_floating_point:
        return math.inf if reduce == "amin" else -math.inf
    if dtype == torch.bool:
        return reduce == "amin"
    limits = torch.iinfo(dtype)
    return limits.max if reduce == "amin" else limits.min


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    _ATEN.scatter_reduce.two: scatter_reduce,
    _ATEN.index_reduce.default: index_reduce,
    _ATEN.scatter.src: scatter,
    _ATEN.scatter.reduce: scatter_with,
    _ATEN.scatter.value_reduce: scatter_with,
    _ATEN.scatter_add.default: scatter_add,
    _ATEN.diag.default: diag,
    _ATEN.diagonal.default: diagonal,
    _ATEN.diagonal_scatter.default: diagonal_scatter,
    _ATEN.bincount.default: bincount,
}
