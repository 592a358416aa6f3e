"""For how long a machine was slow by itself: processors that need more time for the same work.

A virtual machine's processors may be threads of one core for a second or three, as another machine
comes and goes. Requests then take 1.6 times as long as before, without any load to be seen from
within: no process competes, and no time is stolen. A serving runtime is right to take it for a
load; a benchmark has to know that it was none of its own.
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
        """The median over spans in which nothing competed."""
        return median(
            ratio
            for end_s, ratio in self.rows
            if any(begin_s <= end_s < stop_s for begin_s, stop_s in spans)
        )

    def slow_s(self, begin_s: float, stop_s: float, usual: float) -> float:
        """For how long, in seconds, requests took over 1.25 times the usual, by quarter seconds."""
        bins: defaultdict[int, list[float]] = defaultdict(list)
        for end_s, ratio in self.rows:
            if begin_s <= end_s < stop_s:
                bins[int((end_s - begin_s) / _BIN_S)].append(ratio)
        return _BIN_S * sum(median(ratios) > SLOW * usual for ratios in bins.values())
