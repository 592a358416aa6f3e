"""Medians, modes and positions in an order, by sorts and comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_ATEN = torch.ops.aten


def kthvalue(value: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The k-th smallest element along a dimension and its index; NaN is the largest."""
    if value.dim() == 0:
        return value.clone(), torch.zeros_like(value, dtype=torch.int64)
    ordered, indices, n_numbers = _sorted(value, dim)
    kth = ordered.narrow(dim, k - 1, 1)
    if n_numbers is not None:
        kth = kth.masked_fill(n_numbers < k, math.nan)
    return _squeezed(kth, indices.narrow(dim, k - 1, 1), dim, keepdim)


def median(value: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower median along a dimension and its index; NaN if any element is NaN."""
    if value.dim() == 0:
        return value.clone(), torch.zeros_like(value, dtype=torch.int64)
    n = value.shape[dim]
    ordered, indices, _ = _sorted(value, dim)
    middle, index = (part.narrow(dim, (n - 1) // 2, 1) for part in (ordered, indices))
    if value.is_floating_point():
        missing = value.isnan()
        any_missing = missing.any(dim, keepdim=True)
        middle = middle.masked_fill(any_missing, math.nan)
        index = torch.where(any_missing, _first(missing, dim), index)
    return _squeezed(middle, index, dim, keepdim)


def nanmedian(value: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower median along a dimension without NaN; NaN if all elements are NaN."""
    if value.dim() == 0 or not value.is_floating_point():
        return median(value, dim, keepdim)
    ordered, indices, n_numbers = _sorted(value, dim)
    assert n_numbers is not None
    middle = ((n_numbers - 1) // 2).clamp(min=0)
    found = ordered.gather(dim, middle).masked_fill(n_numbers == 0, math.nan)
    return _squeezed(found, indices.gather(dim, middle), dim, keepdim)


def median_of_all(value: Tensor) -> Tensor:
    """The lower median of all elements."""
    return median(value.flatten(), 0)[0]


def nanmedian_of_all(value: Tensor) -> Tensor:
    """The lower median of all elements that are not NaN."""
    return nanmedian(value.flatten(), 0)[0]


def mode(value: Tensor, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The most frequent element, the smallest of several, and its last index."""
    if value.dim() == 0:
        return value.clone(), torch.zeros_like(value, dtype=torch.int64)
    rows = value.movedim(dim, -1)
    counts = (rows[..., :, None] == rows[..., None, :]).sum(-1)
    often = counts == counts.amax(-1, keepdim=True)
    found = rows.where(often, _largest(rows.dtype)).amin(-1, keepdim=True)
    places = torch.arange(rows.shape[-1], device=value.device)
    index = torch.where(rows == found, places, 0).amax(-1, keepdim=True)
    return _squeezed(found.movedim(-1, dim), index.movedim(-1, dim), dim, keepdim)


def searchsorted(
    ordered: Tensor,
    value: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """The positions at which to insert elements into a sorted tensor, by bisection.

    Args:
        ordered: ``(n,)``, or ``(..., n)`` with the dimensions of ``value`` before the last.
        value: ``(..., m)``, or any shape if ``ordered`` has one dimension.
        out_int32: Whether the result is int32.
        right: Whether an element comes after equal elements.
        side: "left" or "right", as a text.
        sorter: Indices that sort ``ordered``, if it is not sorted.

    Returns:
        Indices in the shape of ``value``.
    """
    right = right or side == "right"
    if sorter is not None:
        ordered = ordered.gather(-1, sorter)
    dtype = torch.int32 if out_int32 else torch.int64
    n = ordered.shape[-1]
    if not isinstance(n, int):
        pairs = (ordered[..., None, :] if ordered.dim() > 1 else ordered), value[..., None]
        return _comes_before(*pairs, right).sum(-1).to(dtype)
    place = torch.zeros_like(value, dtype=torch.int64)
    step = 1 << n.bit_length() >> 1
    while step:
        last = place + (step - 1)
        at = last.clamp(max=n - 1)
        element = ordered[at] if ordered.dim() == 1 else ordered.gather(-1, at)
        place = torch.where(_comes_before(element, value, right) & (last < n), place + step, place)
        step >>= 1
    return place.to(dtype)


def searchsorted_number(ordered: Tensor, value: float, **options: Any) -> Tensor:
    """The position at which to insert a number."""
    dtype = torch.result_type(ordered, value)
    return searchsorted(ordered, torch.tensor([value], dtype=dtype), **options).reshape(())


def bucketize_number(value: float, ordered: Tensor, **options: Any) -> Tensor:
    """The position at which to insert a number."""
    return searchsorted_number(ordered, value, **options)


def isin(
    value: Tensor, among: Tensor, *, assume_unique: bool = False, invert: bool = False
) -> Tensor:
    """Whether each element is among others."""
    found = (value[..., None] == among.flatten()).any(-1)
    return found.logical_not() if invert else found


def _first(found: Tensor, dim: int) -> Tensor:
    """The index of the first true element along a dimension, which is kept."""
    n = found.shape[dim]
    places = torch.arange(n, device=found.device)
    places = places.reshape(-1, *[1] * (found.dim() - 1 - dim % found.dim()))
    return torch.where(found, places, n).amin(dim, keepdim=True)


def _largest(dtype: torch.dtype) -> float:
    return math.inf if dtype.is_floating_point else torch.iinfo(dtype).max


def _comes_before(element: Tensor, value: Tensor, right: bool) -> Tensor:
    """Whether an element of the order comes before a value; NaN comes last."""
    return ((element > value) if right else (element >= value)).logical_not()


def _sorted(value: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The sorted elements, their indices, and the number of elements that are not NaN.

    ONNX does not define the order of NaN; here it is equal to infinity. The number is None for
    dtypes without NaN.
    """
    n_numbers = None
    if value.is_floating_point():
        missing = value.isnan()
        n_numbers = missing.logical_not().sum(dim, keepdim=True)
        value = value.masked_fill(missing, math.inf)
    ordered, indices = value.sort(dim=dim, stable=True)
    return ordered, indices, n_numbers


def _squeezed(value: Tensor, index: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    return (value, index) if keepdim else (value.squeeze(dim), index.squeeze(dim))


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    _ATEN.kthvalue.default: kthvalue,
    _ATEN.median.default: median_of_all,
    _ATEN.median.dim: median,
    _ATEN.nanmedian.default: nanmedian_of_all,
    _ATEN.nanmedian.dim: nanmedian,
    _ATEN.mode.default: mode,
    _ATEN.searchsorted.Tensor: searchsorted,
    _ATEN.searchsorted.Scalar: searchsorted_number,
    _ATEN.bucketize.Scalar: bucketize_number,
    _ATEN.isin.Tensor_Tensor: isin,
}
