"""Report slow requests by few events."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fxelastic.edge.serving.events import EventLog
from fxelastic.edge.serving.monitor import Load


@dataclass
class SlowRequests:
    """Reports slow requests: one event for those of some seconds, with their number.

    Attributes:
        events: Records the events.
        slow: How many times as long as the others a slow request takes.
        every_s: The time between two events, in seconds.
    """

    events: EventLog
    slow: float
    every_s: float = 10.0
    _n_slow: int = field(init=False, repr=False, default=0)
    _n: int = field(init=False, repr=False, default=0)
    _told_s: float = field(init=False, repr=False, default=-math.inf)

    def add(self, load: Load, now_s: float, *, last: bool = False) -> None:
        """Count the fresh requests of a reading; the first slow one is reported at once.

        Args:
            load: The reading.
            now_s: The time.
            last: Report what is left.
        """
        self._n_slow += load.n_slow
        self._n += len(load.fresh)
        if not self._n_slow or (not last and 0 <= now_s - self._told_s < self.every_s):
            return
        self._told_s = now_s
        self.events.add(
            "slow_requests",
            f"{self._n_slow} of {self._n} requests took over {self.slow:g} times as long as "
            "the others",
            n=self._n_slow,
        )
        self._n_slow = self._n = 0
