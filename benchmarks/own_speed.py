"""Time for which a machine was slow by itself: its processors needed more time for the same work.

A virtual machine's processors may be threads of one core for a second or three, as another machine
comes and goes. Requests then take 1.6 times as long as before, although no load is visible
from inside: no process competes, and no time is stolen. A serving runtime rightly treats this as a
load; a benchmark has to tell it from the load that it made.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median

_BIN_S = 0.25
# Of the usual processor time; above it the machine itself was slow.
SLOW = 1.25


@dataclass
class OwnSpeed:
    """The processor time that requests took.

    Attributes:
        rows: ``(end in s, processor time per estimated latency)`` of each request.
    """

    rows: list[tuple[float, float]] = field(default_factory=list)

    def usual(self, spans: list[tuple[float, float]]) -> float:
        """The median over the spans without competing processes."""
        return median(
            ratio
            for end_s, ratio in self.rows
            if any(begin_s <= end_s < stop_s for begin_s, stop_s in spans)
        )

    def slow_s(self, begin_s: float, stop_s: float, usual: float) -> float:
        """Seconds for which requests took over 1.25 times the usual time, in steps of a quarter."""
        bins: defaultdict[int, list[float]] = defaultdict(list)
        for end_s, ratio in self.rows:
            if begin_s <= end_s < stop_s:
                bins[int((end_s - begin_s) / _BIN_S)].append(ratio)
        return _BIN_S * sum(median(ratios) > SLOW * usual for ratios in bins.values())
