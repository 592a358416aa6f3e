"""Count where samples leave cascades."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

import numpy as np

from fxelastic.edge.executor import Array
from fxelastic.spec.cascade import Cascade

#: The key of the samples that left at no exit.
END = "end"


class ExitCounts:
    """The number of samples that left at each exit. Thread-safe."""

    def __init__(self) -> None:
        """Start with no samples."""
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, cascade: Cascade, left_at: Array) -> None:
        """Count a batch.

        Args:
            cascade: The cascade.
            left_at: For each sample the number of the subnet that gave its result, ``(N,)``.
        """
        n_samples = np.bincount(left_at, minlength=len(cascade.archs)).tolist()
        with self._lock:
            for arch, n in zip(cascade.archs, n_samples, strict=True):
                self._counts[END if arch is cascade.end else arch.branches[-1]] += n

    def snapshot(self) -> Mapping[str, int]:
        """The numbers of samples by the exit's branch; `END` for those that left at no exit."""
        with self._lock:
            return dict(sorted(self._counts.items()))
