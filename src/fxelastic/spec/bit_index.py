"""Which of many values are at most a bound, as the bits of an integer."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

# The most integers of an index; for 10,000 values they take 1.3 MB, and leave 10 values unclear.
_MOST = 1024


class BitIndex:
    """Finds the values that are at most a bound by one bisection.

    The conjunction of several columns is then one operation on integers, instead of a pass over
    all rows.

    Attributes:
        exact: Whether `at_most` has no further values.
    """

    def __init__(self, values: Sequence[float]) -> None:
        """Sort the values.

        Args:
            values: The values; bit ``i`` stands for value ``i``.
        """
        order = np.argsort(np.asarray(values, np.float64), kind="stable")
        step = max(1, -(-len(order) // _MOST))
        self.exact = step == 1
        # The least value of each step: few enough to stay in the processor's caches.
        self._least: list[float] = np.asarray(values, np.float64)[order[::step]].tolist()
        bits = np.zeros(len(order), np.bool_)
        self._masks = [0]
        for start in range(0, len(order), step):
            bits[order[start : start + step]] = True
            packed = np.packbits(bits, bitorder="little").tobytes()
            self._masks.append(int.from_bytes(packed, "little"))

    def at_most(self, bound: float) -> int:
        """The bits of all values that are at most a bound.

        Unless the index is `exact`, a few values just above the bound may be among them.
        """
        return self._masks[bisect_right(self._least, bound)]
