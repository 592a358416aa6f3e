"""Estimate how much slower than expected the device is, from the latencies of requests."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.monitoring.recent_latencies import MEDIAN

# Requests of several threads may be recorded in a different order than they end; if the time goes
# back by more than this, the clock was set.
_CLOCK_SLACK_S = 1.0
# The maximum number of requests that are kept.
_MOST = 8192


class Observation(NamedTuple):
    """One request. A tuple, not a dataclass: it is built on every request.

    Attributes:
        time_s: The time when it ended, on the runtime's clock.
        candidate: The subnet that served it, with its estimated latency at that time.
        actual_ms: The measured latency, in ms.
        first: Whether it is one of the first runs of a session, which allocate memory, so that its
            latency does not show the load.
        scale: The latency estimated at the request's own sizes, as a multiple of the candidate's
            estimate; None if unknown, so that its latency does not show the load.
        sizes: The request's sizes by symbol, if other sizes than the batch vary.
        left: The latency estimated for the exits at which its samples left a cascade, as a
            multiple of the candidate's estimate, which is a mean.
    """

    time_s: float
    candidate: Candidate
    actual_ms: float
    first: bool = False
    scale: float | None = 1.0
    sizes: Mapping[str, int] | None = None
    left: float = 1.0

    @property
    def estimated_ms(self) -> float | None:
        """The estimated latency on the idle device, in ms; None if unknown."""
        return None if self.scale is None else self.scale * self.left * self.candidate.ms


@dataclass(frozen=True)
class Load:
    """A reading of the monitor; ratios are ``r = actual / estimated`` (§5.3).

    Attributes:
        ratio: r of the window, at the monitor's percentile, by default its median; None before
            there were enough requests.
        recent: r of the newest part of the window, at the same percentile, which follows a step of
            the load sooner than the whole window.
        n_samples: The number of requests in the window.
        peaks: ``(time_s, ratio)`` of earlier readings that no later one reached, oldest first.
        fresh: The requests since the last reading, in the order they were recorded.
        n_slow: The number of fresh requests that took several times as long as usual.
        clock_jumped: Whether the clock was set back since the last reading; earlier requests are
            then forgotten.
        n_unmeasured: The number of fresh requests whose sizes have no estimate.
        high: Upper quartile of r in the newest part of the window, or the monitor's percentile if
            that is higher: a load that varies within fractions of a second has several levels.
        begin_s: The time when the first request ended; None before that.
        median: Median r of the window, whatever the monitor's percentile.
    """

    ratio: float | None = None
    recent: float | None = None
    n_samples: int = 0
    peaks: Sequence[tuple[float, float]] = ()
    fresh: Sequence[Observation] = ()
    n_slow: int = 0
    clock_jumped: bool = False
    high: float | None = None
    begin_s: float | None = None
    n_unmeasured: int = 0
    median: float | None = None

    def peak_since(self, time_s: float) -> float | None:
        """The largest ratio read since ``time_s``; None if there was no reading."""
        return next((ratio for time, ratio in self.peaks if time >= time_s), None)


@dataclass
class Monitor:
    """Estimates r over the latest requests; robust against single slow requests.

    r compares each request with the estimate of the subnet that served it, at the request's own
    sizes. So a window may contain requests from before and after a switch, and of all sizes.

    Any thread may call `record` on every request: it only appends. One thread calls `read`, which
    does the work.

    Attributes:
        window_s: The length of the window, in seconds. A step of the load is visible after half of
            it; shorter disturbances are not, such as a program that starts or a subnet that loads.
        min_samples: The number of requests that a median needs; the window extends beyond
            ``window_s`` if there are fewer.
        max_samples: The maximum number of requests to compute with; if there are more, only every
            second or third request is used, and so on.
        horizon_s: How long peaks are kept, in seconds.
        slow: A request is slow if its ratio exceeds the window's median by this factor.
        percentile: The percentile of r that readings report. A high one needs more requests than
            ``min_samples``: 40 for the 95th.
    """

    window_s: float = 0.9
    min_samples: int = 5
    max_samples: int = 301
    horizon_s: float = 600.0
    slow: float = 4.0
    percentile: float = MEDIAN
    _incoming: deque[Observation] = field(init=False, repr=False)
    _samples: deque[tuple[float, float]] = field(init=False, repr=False)
    _peaks: deque[tuple[float, float]] = field(init=False, repr=False)
    _begin_s: float | None = field(init=False, repr=False, default=None)
    _latest_s: float = field(init=False, repr=False, default=-math.inf)
    _last: Load = field(init=False, repr=False, default_factory=Load)

    def __post_init__(self) -> None:
        """Start with no requests."""
        # Bounded, because there may be no reader.
        self._incoming = deque(maxlen=_MOST)
        self._samples = deque(maxlen=_MOST)
        self._peaks = deque()

    def record(self, observation: Observation) -> None:
        """Add a request. Thread-safe."""
        self._incoming.append(observation)

    def read(self, now_s: float) -> Load:
        """Read the load.

        Args:
            now_s: The time, on the clock of the observations.
        """
        fresh: list[Observation] = []
        while self._incoming:
            fresh.append(self._incoming.popleft())
        usual = self._last.median
        n_slow = n_unmeasured = 0
        jumped = False
        for seen in fresh:
            if seen.time_s < self._latest_s - _CLOCK_SLACK_S:
                jumped = True
                self._latest_s = seen.time_s
                self._samples.clear()
                self._peaks.clear()
                self._begin_s = None
            self._latest_s = max(self._latest_s, seen.time_s)
            estimated_ms = seen.estimated_ms
            if estimated_ms is None:
                n_unmeasured += 1
                continue
            ratio = seen.actual_ms / estimated_ms
            # A latency of 0 or less means that the clock was set during the request.
            if 0 < ratio < math.inf and not seen.first:
                self._samples.append((seen.time_s, ratio))
                if self._begin_s is None:
                    self._begin_s = seen.time_s
                n_slow += usual is not None and ratio > self.slow * usual
        ratio_now, recent, high, n, middle = self._quantiles(now_s)
        if ratio_now is not None and fresh:
            self._note_peak(now_s, ratio_now)
        self._last = Load(
            *(ratio_now, recent, n, tuple(self._peaks), fresh, n_slow, jumped),
            high=high,
            begin_s=self._begin_s,
            n_unmeasured=n_unmeasured,
            median=middle,
        )
        return self._last

    def _quantiles(
        self, now_s: float
    ) -> tuple[float | None, float | None, float | None, int, float | None]:
        samples, least = self._samples, self._least
        while len(samples) > least and samples[0][0] <= now_s - self.window_s:
            samples.popleft()
        n = len(samples)
        if n < least:
            return None, None, None, n, None
        stride = -(-n // max(self.max_samples, least))
        window = [ratio for _, ratio in samples][::stride]
        newest = sorted(window[-max(len(window) // 3, least) :])
        high = newest[max(3 * len(newest) // 4, self._index(len(newest)))]
        middle = median(window)
        if self.percentile == MEDIAN:
            return middle, median(newest), high, n, middle
        ratio = sorted(window)[self._index(len(window))]
        return ratio, newest[self._index(len(newest))], high, n, middle

    @property
    def _least(self) -> int:
        """The number of requests that a reading needs: two above the percentile."""
        if self.percentile == MEDIAN:
            return self.min_samples
        return max(self.min_samples, math.ceil(2 / (1 - self.percentile / 100)))

    def _index(self, n: int) -> int:
        """The index of the percentile in n sorted values."""
        return min(n - 1, int(self.percentile / 100 * n))

    def _note_peak(self, now_s: float, ratio: float) -> None:
        while self._peaks and self._peaks[-1][1] <= ratio:
            self._peaks.pop()
        self._peaks.append((now_s, ratio))
        while self._peaks[0][0] < now_s - self.horizon_s:
            self._peaks.popleft()
