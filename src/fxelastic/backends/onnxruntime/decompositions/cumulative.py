"""Cumulative maxima, products and sums of exponentials; ONNX has only the cumulative sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_ATEN = torch.ops.aten
_Elements = tuple[Tensor, ...]


def cummax(value: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The largest element so far and its index: the last of equal elements; NaN is the largest.

    Args:
        value: Any tensor.
        dim: The dimension.

    Returns:
        Both in the shape of ``value``.
    """
    if value.dim() == 0:
        return value.clone(), torch.zeros_like(value, dtype=torch.int64)
    if value.dtype == torch.bool:
        largest, index = cummax(value.int(), dim)
        return largest.bool(), index
    n = value.shape[dim]
    places = torch.arange(n, device=value.device)
    if not isinstance(n, int):
        rows, so_far = _so_far(value, dim)
        largest, index = _largest(rows, so_far, places)
        return largest.movedim(-1, dim), index.movedim(-1, dim)
    index = places.reshape(-1, *[1] * (value.dim() - 1 - dim % value.dim())).expand_as(value)

    def better(a: _Elements, b: _Elements) -> _Elements:
        wins = b[0] >= a[0]
        if value.is_floating_point():
            wins = (wins & a[0].isnan().logical_not()) | b[0].isnan()
        return b[0].where(wins, a[0]), b[1].where(wins, a[1])

    largest, index = _scan((value, index), dim, better)
    return largest, index


def cummin(value: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The smallest element so far and its index: the last of equals; NaN is the smallest."""
    # Both functions reverse the order and are their own inverse.
    opposite = torch.neg if value.is_floating_point() else torch.bitwise_not
    largest, index = cummax(opposite(value), dim)
    return opposite(largest), index


def cumprod(value: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """The product of the elements so far; int64 for integers and booleans."""
    if dtype is None:
        dtype = value.dtype if value.is_floating_point() else torch.int64
    value = value.to(dtype)
    if value.dim() == 0:
        return value.clone()
    if not isinstance(value.shape[dim], int):
        rows, so_far = _so_far(value, dim)
        return torch.where(so_far, rows[..., None, :], 1).prod(-1).movedim(-1, dim)
    return _scan((value,), dim, lambda a, b: (a[0] * b[0],))[0]


def logcumsumexp(value: Tensor, dim: int) -> Tensor:
    """The logarithm of the sum of the exponentials of the elements so far."""
    if value.dim() == 0:
        return value.clone()
    if not isinstance(value.shape[dim], int):
        rows, so_far = _so_far(value, dim)
        return torch.where(so_far, rows[..., None, :], -math.inf).logsumexp(-1).movedim(-1, dim)
    return _scan((value,), dim, lambda a, b: (_log_add(a[0], b[0]),))[0]


def _largest(rows: Tensor, so_far: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The largest element under each row of a mask ``(n, n)``, and its last index."""
    rows = rows[..., None, :]
    if not rows.is_floating_point():
        largest = torch.where(so_far, rows, torch.iinfo(rows.dtype).min).amax(-1)
        return largest, _last(so_far & (rows == largest[..., None]), places)
    missing = so_far & rows.isnan()
    largest = torch.where(so_far & rows.isnan().logical_not(), rows, -math.inf).amax(-1)
    any_missing = missing.any(-1)
    equal = so_far & (rows == largest[..., None]) & any_missing[..., None].logical_not()
    found = missing | equal
    return largest.masked_fill(any_missing, math.nan), _last(found, places)


def _last(found: Tensor, places: Tensor) -> Tensor:
    return torch.where(found, places, 0).amax(-1)


def _so_far(value: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The tensor with ``dim`` moved to the end, and a mask of the elements up to each element.

    For symbolic sizes, for which no fixed number of steps is enough.
    """
    places = torch.arange(value.shape[dim], device=value.device)
    return value.movedim(dim, -1), places[None, :] <= places[:, None]


def _scan(
    values: _Elements, dim: int, combine: Callable[[_Elements, _Elements], _Elements]
) -> _Elements:
    """Combine each element with all before it, in a logarithmic number of steps."""
    n, step = values[0].shape[dim], 1
    while step < n:
        head = [value.narrow(dim, 0, step) for value in values]
        before = tuple(value.narrow(dim, 0, n - step) for value in values)
        after = tuple(value.narrow(dim, step, n - step) for value in values)
        combined = combine(before, after)
        values = tuple(torch.cat(parts, dim) for parts in zip(head, combined, strict=True))
        step *= 2
    return values


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    """``log(exp(a) + exp(b))``, also of equal infinities."""
    more = torch.log1p(torch.exp(-(a - b).abs()))
    return torch.where(a == b, a + math.log(2), torch.where(a > b, a, b) + more)


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    _ATEN.cummax.default: cummax,
    _ATEN.cummin.default: cummin,
    _ATEN.cumprod.default: cumprod,
    _ATEN.logcumsumexp.default: logcumsumexp,
}
