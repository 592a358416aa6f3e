"""Percentiles of the latest requests' latencies, and the share of them over the budget."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from fxelastic.errors import UsageError

#: The percentile of a median, which budgets are for by default.
MEDIAN = 50.0
# The latest requests that a summary is of, at most.
_MOST = 4096
# Summaries are computed at most this often, in seconds.
_EVERY_S = 0.5


@dataclass(frozen=True)
class LatencySummary:
    """The latencies of the latest requests.

    Attributes:
        p50_ms: Their median, in ms.
        p95_ms: Their 95th percentile, in ms.
        p99_ms: Their 99th percentile, in ms.
        share_over: The share of them that took longer than the budget.
        n: How many requests they are.
    """

    p50_ms: float
    p95_ms: float
    p99_ms: float
    share_over: float
    n: int


@dataclass
class RecentLatencies:
    """Keeps the latencies of the last seconds. One thread adds and summarises.

    Attributes:
        window_s: How far back a summary looks, in seconds.
        n_over: The number of requests over the budget so far.
        summary: The latest summary; None before the first request.
    """

    window_s: float = 10.0
    n_over: int = field(init=False, default=0)
    summary: LatencySummary | None = field(init=False, default=None)
    _kept: deque[tuple[float, float, bool]] = field(init=False, repr=False)
    _computed_s: float = field(init=False, repr=False, default=-math.inf)

    def __post_init__(self) -> None:
        """Start with no requests."""
        self._kept = deque(maxlen=_MOST)

    def add(self, time_s: float, took_ms: float, budget_ms: float) -> None:
        """Add a request.

        Args:
            time_s: When it ended.
            took_ms: Its latency, in ms; at the sizes that the budget is for, if sizes vary.
            budget_ms: The budget, in ms.
        """
        over = took_ms > budget_ms
        self.n_over += over
        self._kept.append((time_s, took_ms, over))

    def update(self, now_s: float, *, now: bool = False) -> LatencySummary | None:
        """Compute the summary, unless it was computed half a second ago or later.

        Args:
            now_s: The time, on the clock of the requests.
            now: Compute it in any case.
        """
        kept = self._kept
        if not kept or (not now and 0 <= now_s - self._computed_s < _EVERY_S):
            return self.summary
        self._computed_s = now_s
        # The latest request counts even if it is old.
        while len(kept) > 1 and kept[0][0] < now_s - self.window_s:
            kept.popleft()
        p50, p95, p99 = np.percentile([ms for _, ms, _ in kept], (50, 95, 99), method="higher")
        share = sum(over for _, _, over in kept) / len(kept)
        self.summary = LatencySummary(float(p50), float(p95), float(p99), share, len(kept))
        return self.summary


def check_percentile(percentile: float | None) -> None:
    """Check the option ``latency_percentile``.

    Raises:
        UsageError: It is not a number from 50 to 99.9.
    """
    number = isinstance(percentile, (int, float)) and not isinstance(percentile, bool)
    if percentile is not None and not (number and MEDIAN <= percentile <= 99.9):
        raise UsageError(
            f"latency_percentile must be from 50 to 99.9, got {percentile!r}",
            expected="for example 95: 95 % of the requests keep the budget",
            got=repr(percentile),
        )
