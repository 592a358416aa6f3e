"""Distances between rows, by differences or a matrix product, as in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_ATEN = torch.ops.aten
# With more rows, torch computes Euclidean distances by a matrix product.
_MANY_ROWS = 25


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """The p-norm distance between each row of one tensor and each of another.

    Args:
        x1: ``(..., P, M)``.
        x2: ``(..., R, M)``.
        p: From 0 to infinity.
        compute_mode: 1 for a matrix product, 2 for differences; otherwise by the number of rows.

    Returns:
        ``(..., P, R)``.
    """
    if p == 2 and (compute_mode == 1 or (compute_mode != 2 and _has_many_rows(x1, x2))):
        # |a - b|² = |a|² - 2ab + |b|², which only rounding makes negative.
        squares = x1.square().sum(-1)[..., :, None] + x2.square().sum(-1)[..., None, :]
        return (squares - 2 * x1.matmul(x2.mT)).clamp(min=0).sqrt()
    return _norm(x1[..., :, None, :] - x2[..., None, :, :], p)


def pdist(x: Tensor, p: float = 2.0) -> Tensor:
    """The distances between each row and all rows after it, in one dimension."""
    first, second = torch.triu_indices(x.shape[0], x.shape[0], 1, device=x.device)
    return _norm(x[first] - x[second], p)


def _has_many_rows(x1: Tensor, x2: Tensor) -> bool:
    """Whether one has many rows at every batch size; a product is inaccurate for close rows."""
    return any(isinstance(x.shape[-2], int) and x.shape[-2] > _MANY_ROWS for x in (x1, x2))


def _norm(difference: Tensor, p: float) -> Tensor:
    difference = difference.abs()
    if difference.shape[-1] == 0:
        return difference.sum(-1)
    if p == 0:
        return (difference != 0).to(difference.dtype).sum(-1)
    if p == 1:
        return difference.sum(-1)
    if p == 2:
        return difference.square().sum(-1).sqrt()
    if p == math.inf:
        return difference.amax(-1)
    return difference.pow(p).sum(-1).pow(1 / p)


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    _ATEN.cdist.default: cdist,
    _ATEN._cdist_forward.default: cdist,
    _ATEN.pdist.default: pdist,
    _ATEN._pdist_forward.default: pdist,
}
