"""Report slow requests by few events."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class SlowRequests:
    """Reports slow requests: one event for those of some seconds, with their number.

    Attributes:
        report: Records an event, from its kind, a message and details.
        slow: How many times as long as the others a slow request takes.
        every_s: The time between two events, in seconds.
    """

    report: Callable[..., object]
    slow: float
    every_s: float = 10.0
    _n_slow: int = field(init=False, repr=False, default=0)
    _n: int = field(init=False, repr=False, default=0)
    _told_s: float = field(init=False, repr=False, default=-math.inf)

    def add(self, n_slow: int, n: int, now_s: float, *, last: bool = False) -> None:
        """Count the requests since the last call; the first slow one is reported at once.

        Args:
            n_slow: How many of them were slow.
            n: How many there were.
            now_s: The time.
            last: Report what is left.
        """
        self._n_slow += n_slow
        self._n += n
        if not self._n_slow or (not last and 0 <= now_s - self._told_s < self.every_s):
            return
        self._told_s = now_s
        self.report(
            "slow_requests",
            f"{self._n_slow} of {self._n} requests took over {self.slow:g} times as long as "
            "the others",
            n=self._n_slow,
        )
        self._n_slow = self._n = 0
