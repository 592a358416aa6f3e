"""Names for slices: which indices of which dimensions can only be removed together.

Each dimension of each tensor has a label for every index. Indices with equal labels go together:
the i-th output channel of a convolution, the i-th scale of the norm behind it, the i-th input
channel of the next convolution. `FIXED` marks what stays whatever else goes: batch and spatial
dimensions, and the block's own input and output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

#: For each index of one dimension its label.
Labels = NDArray[np.int64]
#: The labels of a tensor, one array for each dimension.
Dims = tuple[Labels, ...]

FIXED = 0


class Channels:
    """Labels that are found to be the same, one after the other (a union-find structure).

    Attributes:
        reasons: Why labels were fixed, in the order in which they were.
    """

    def __init__(self) -> None:
        """Begin with `FIXED` alone."""
        self._parent = [FIXED]
        self.reasons: dict[str, None] = {}

    def fresh(self, shape: Sequence[int]) -> Dims:
        """New labels for every index of every dimension of a tensor; a single index stays."""
        return tuple(self._new(int(size)) if size > 1 else fixed(int(size)) for size in shape)

    def _new(self, size: int) -> Labels:
        start = len(self._parent)
        self._parent.extend(range(start, start + size))
        return np.arange(start, start + size, dtype=np.int64)

    def find(self, label: int) -> int:
        """The label that stands for all that are the same as this one."""
        parent = self._parent
        root = label
        while parent[root] != root:
            root = parent[root]
        while parent[label] != root:
            parent[label], label = root, parent[label]
        return root

    def roots(self, labels: Labels) -> Labels:
        """`find` for each label of an array."""
        return np.fromiter((self.find(int(x)) for x in labels), np.int64, len(labels))

    def unite(self, one: Labels, other: Labels) -> None:
        """Have the labels at the same positions go together."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            x, y = self.find(a), self.find(b)
            if x != y:  # the smaller stands for both, so that FIXED wins
                self._parent[max(x, y)] = min(x, y)

    def unite_all(self, labels: Labels) -> None:
        """Have all labels of an array go together."""
        if len(labels) > 1:
            self.unite(labels[1:], np.full(len(labels) - 1, labels[0], np.int64))

    def fix(self, labels: Labels, reason: str = "") -> None:
        """Keep these.

        Args:
            labels: What is to stay.
            reason: Why, if that should be told where nothing can be removed.
        """
        removable = any(self.find(int(x)) != FIXED for x in labels)
        if removable:
            self.unite(labels, np.zeros(len(labels), np.int64))
            if reason:
                self.reasons.setdefault(reason)

    def fix_dims(self, dims: Iterable[Labels], reason: str = "") -> None:
        """Keep every index of these dimensions."""
        for labels in dims:
            self.fix(labels, reason)


def fixed(size: int) -> Labels:
    """The labels of a dimension that stays whole."""
    return np.zeros(size, np.int64)
