"""Whether the latency table still holds: a load slows all blocks alike, a drift does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Drift:
    """How measured latencies of branches differ from the table's.

    Attributes:
        load: By how much all of them are slower, as a factor: the median.
        factors: For each branch, by how much it is slower than that.
        uneven: The branches whose factor is too far from 1.
        misjudged: Share of the subnet's latency that the table has in the wrong place.
    """

    load: float
    factors: Mapping[str, float]
    uneven: tuple[str, ...]
    misjudged: float


@dataclass(frozen=True)
class DriftRule:
    """Tells a drift of the table from a load of the device.

    A throttled core, another version of onnxruntime or another memory clock make some operators
    slower and others not; competing processes slow all of them by about the same factor, which
    r = actual / estimated takes care of.

    Attributes:
        tolerance: A branch is uneven from this factor against the median, either way.
        share: A drift is told when this share of the latency is misjudged.
    """

    tolerance: float = 1.25
    share: float = 0.05

    def compare(self, table_ms: Mapping[str, float], measured_ms: Mapping[str, float]) -> Drift:
        """Compare what was measured with the table.

        Args:
            table_ms: Latency of each branch in the table, in ms.
            measured_ms: Latencies measured close to one another in time, in ms. A branch that is
                missing, or has no positive latency on either side, is left out.
        """
        ratios = {
            name: measured / table_ms[name]
            for name, measured in measured_ms.items()
            if 0 < measured < math.inf and 0 < table_ms.get(name, 0.0) < math.inf
        }
        if not ratios:
            return Drift(1.0, {}, (), 0.0)
        # Weighted by latency, or a few tiny branches would say what the load is.
        load = _weighted_median([(ratios[name], table_ms[name]) for name in ratios])
        factors = {name: ratio / load for name, ratio in ratios.items()}
        uneven = tuple(
            name
            for name, factor in factors.items()
            if not 1 / self.tolerance <= factor <= self.tolerance
        )
        total_ms = math.fsum(table_ms[name] for name in ratios)
        wrong_ms = math.fsum(abs(factors[name] - 1) * table_ms[name] for name in uneven)
        return Drift(load, factors, uneven, wrong_ms / total_ms)

    def drifted(self, drift: Drift) -> bool:
        """Whether the table no longer holds."""
        return drift.misjudged >= self.share


def _weighted_median(pairs: list[tuple[float, float]]) -> float:
    """The value below and above which lies half of the weight."""
    pairs.sort()
    half = math.fsum(weight for _, weight in pairs) / 2
    seen = 0.0
    for value, weight in pairs:
        seen += weight
        if seen >= half:
            return value
    return median(value for value, _ in pairs)
