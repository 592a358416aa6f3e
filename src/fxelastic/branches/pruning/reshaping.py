"""Labels through a change of shape, where dimensions split into factors or merge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxelastic.branches.pruning.channels import FIXED, Channels, Dims, Labels, fixed


def reshaped(
    channels: Channels, dims: Dims, before: Sequence[int], after: Sequence[int], factor: int
) -> Dims:
    """The labels of a tensor of another shape with the same elements in the same order.

    Args:
        channels: The relations between labels, which the call adds to.
        dims: The labels before.
        before: The shape before.
        after: The shape after.
        factor: Which factor of a split dimension keeps its labels if several could: an index into
            the factors above 1.

    Returns:
        The labels after. Where a split leaves a choice, one factor keeps the labels, and indices
        that differ only in the other factors go together.
    """
    result: list[Labels] = []
    for old, new in _matching(before, after):
        merged = _merged(channels, [dims[i] for i in old], [before[i] for i in old])
        result += _split(channels, merged, [after[i] for i in new], factor)
    return tuple(result)


def _matching(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Groups of neighbouring dimensions with equal products."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [], []
        p = q = 1
        if i < len(before):
            old.append(i)
            p = before[i]
            i += 1
        if j < len(after):
            new.append(j)
            q = after[j]
            j += 1
        while p != q:
            if p < q and i < len(before):
                old.append(i)
                p *= before[i]
                i += 1
            elif j < len(after):
                new.append(j)
                q *= after[j]
                j += 1
            else:
                raise ValueError(f"{list(before)} and {list(after)} have no common factors")
        # Sizes of 1 after a group belong to it, so that every group has partners.
        while i < len(before) and before[i] == 1 and (j >= len(after) or after[j] != 1):
            old.append(i)
            i += 1
        while j < len(after) and after[j] == 1 and (i >= len(before) or before[i] != 1):
            new.append(j)
            j += 1
        groups.append((old, new))
    return groups


def _merged(channels: Channels, dims: Sequence[Labels], sizes: Sequence[int]) -> Labels:
    """The labels of dimensions that merge into one."""
    labelled = [i for i, labels in enumerate(dims) if (channels.roots(labels) != FIXED).any()]
    if len(labelled) > 1:
        for i in labelled:
            channels.fix(dims[i], "two dimensions with channels are merged")
        labelled = []
    total = int(np.prod(sizes))
    if not labelled:
        return fixed(total)
    (i,) = labelled
    shape = [1] * len(sizes)
    shape[i] = sizes[i]
    grid = np.broadcast_to(dims[i].reshape(shape), tuple(sizes))
    return np.ascontiguousarray(grid).reshape(total)


def _split(channels: Channels, labels: Labels, sizes: Sequence[int], factor: int) -> list[Labels]:
    """The labels of the factors of one dimension."""
    roots = channels.roots(labels)
    if not sizes:
        return []
    if len(sizes) == 1:
        return [labels]
    if (roots == FIXED).all():
        return [fixed(size) for size in sizes]
    grid = roots.reshape(tuple(sizes))
    real = [d for d, size in enumerate(sizes) if size > 1]
    varying = [d for d in real if (grid != grid.take([0], axis=d)).any()]
    keeps = varying[0] if len(varying) == 1 else real[factor % len(real)] if real else 0
    rows = np.moveaxis(labels.reshape(tuple(sizes)), keeps, 0).reshape(sizes[keeps], -1)
    for row in rows:
        channels.unite_all(np.ascontiguousarray(row))
    return [rows[:, 0].copy() if d == keeps else fixed(size) for d, size in enumerate(sizes)]
