"""The similarity of two results, sample by sample."""

from __future__ import annotations

import numpy as np

from fxelastic.edge.execution import Array
from fxelastic.errors import UsageError

_LARGEST = np.finfo(np.float64).max  # what infinities count as


def cosines(results: Array, targets: Array) -> Array:
    """The cosine of each sample's elements and its target's.

    1 where both are zero, 0 where one is. Elements that are not finite in the target do not
    count. 0 where a result is NaN.

    Args:
        results: ``(N, …)``.
        targets: Of the same shape.

    Returns:
        ``(N,)``, from -1 to 1; exactly 1 where both are equal.

    Raises:
        UsageError: The shapes differ, or the elements are not numbers.
    """
    ours, theirs = _rows(results, targets, "cosine")
    counted = np.isfinite(theirs)
    theirs = np.where(counted, theirs, 0.0)
    ours = np.clip(np.where(counted, ours, 0.0), -_LARGEST, _LARGEST)
    return _correlations(_scaled(ours), _scaled(theirs))


def rank_correlations(results: Array, targets: Array) -> Array:
    """Spearman's correlation of each sample's elements and its target's.

    Equal elements have the mean of their ranks. 1 where neither has two different elements, 0
    where one has none. 0 where either is NaN somewhere.

    Args:
        results: ``(N, …)``, two elements or more for each sample.
        targets: Of the same shape.

    Returns:
        ``(N,)``, from -1 to 1; exactly 1 where both have the same order.

    Raises:
        UsageError: The shapes differ, a sample has fewer than two elements, or the elements are not
            numbers.
    """
    ours, theirs = _rows(results, targets, "spearman")
    if ours.shape[1] < 2:
        raise UsageError(
            "spearman can't rank these results",
            expected="results of two numbers or more for each sample",
            got=str(results.shape),
            fix="pass another score",
        )
    nan = np.isnan(ours).any(1) | np.isnan(theirs).any(1)
    found = _correlations(*(np.stack([_ranks(row) for row in rows]) for rows in (ours, theirs)))
    return np.where(nan, 0.0, found)


def _rows(results: Array, targets: Array, name: str) -> tuple[Array, Array]:
    if results.ndim == 0 or results.shape != targets.shape:
        raise UsageError(
            f"{name} can't compare results and targets of these shapes",
            expected="results and targets of one shape (N, …)",
            got=f"{results.shape} and {targets.shape}",
            fix="pass targets of this shape, or none to compare with the original's results",
        )
    if results.dtype.kind not in "biuf" or targets.dtype.kind not in "biuf":
        raise UsageError(
            f"{name} can't compare results and targets of these dtypes",
            expected="real numbers",
            got=f"{results.dtype} and {targets.dtype}",
            fix="pass another score",
        )
    rows = (array.astype(np.float64).reshape(len(array), -1) for array in (results, targets))
    return next(rows), next(rows)


def _scaled(rows: Array) -> Array:
    """Rows whose largest magnitude is 1, so that no square overflows or vanishes; zeros stay."""
    size = np.abs(rows).max(1, initial=0.0, keepdims=True)
    return np.asarray(rows / np.where(size > 0, size, 1.0))


def _ranks(row: Array) -> Array:
    """Ranks less their mean; equal elements share theirs."""
    _, place, n = np.unique(row, return_inverse=True, return_counts=True)
    ranks = np.cumsum(n) - (n - 1) / 2
    return np.asarray(ranks[place.reshape(-1)] - (len(row) + 1) / 2)


def _correlations(ours: Array, theirs: Array) -> Array:
    squares = (ours * ours).sum(1), (theirs * theirs).sum(1)
    # The root of the product, not the product of the roots: equal rows have exactly 1.
    size = np.sqrt(squares[0] * squares[1])
    found = (ours * theirs).sum(1) / np.where(size > 0, size, 1.0)
    neither = (squares[0] == 0) & (squares[1] == 0)
    found = np.where(neither, 1.0, np.where(size > 0, found, 0.0))
    return np.asarray(np.where(np.isnan(found), 0.0, np.clip(found, -1.0, 1.0)))
