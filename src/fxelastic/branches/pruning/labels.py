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
        self._parent = np.zeros(1, np.int64)
        self._size = 1
        self.reasons: dict[str, None] = {}

    def fresh(self, shape: Sequence[int]) -> Dims:
        """New labels for every index of every dimension of a tensor; a single index stays."""
        return tuple(self._new(int(size)) if size > 1 else fixed(int(size)) for size in shape)

    def _new(self, size: int) -> Labels:
        start, self._size = self._size, self._size + size
        if self._size > len(self._parent):
            more = max(self._size, 2 * len(self._parent)) - len(self._parent)
            stop = len(self._parent) + more
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), stop)])
        return np.arange(start, self._size, dtype=np.int64)

    def roots(self, labels: Labels) -> Labels:
        """For each label the one that stands for all that are the same."""
        found = self._parent[labels]
        while True:
            further = self._parent[found]
            if np.array_equal(further, found):
                self._parent[labels] = found
                return found
            found = further

    def unite(self, one: Labels, other: Labels) -> None:
        """Have the labels at the same positions go together.

        Raises:
            ValueError: There are more of one than of the other.
        """
        if len(one) != len(other):
            raise ValueError(f"{len(one)} labels can't be those of {len(other)} indices")
        while True:
            x, y = self.roots(one), self.roots(other)
            differ = x != y
            if not differ.any():
                return
            # The smaller stands for both, so that FIXED wins. Of a label that is united with
            # several at once the smallest stays for now; the others are found the next time round.
            large, small = np.maximum(x, y)[differ], np.minimum(x, y)[differ]
            np.minimum.at(self._parent, large, small)

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
        if (self.roots(labels) != FIXED).any():
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
