"""Time calls on a machine that other processes use too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

#: The least noise of an estimate: no machine is steadier than this.
LEAST_NOISE = 0.01
# Below this share of the time on a processor, other processes disturbed the calling thread. It
# computes or spins while an operator runs, so the undisturbed share is above 0.97.
_DISTURBED = 0.85
# The largest step of a clock that times calls, and how long to wait for one, in s.
_LARGEST_STEP_S, _LONGEST_STEP_S = 1e-4, 0.05


def _wall_s() -> float:
    return time.perf_counter()


def _used_s() -> float:
    return time.process_time()


def _own_s() -> float:
    return time.thread_time()


@dataclass(frozen=True)
class Stopwatch:
    """Measures the time of calls.

    The processor time of one thread is the time of a call on an idle machine, whatever competing
    processes do meanwhile. This does not hold for several threads: they take turns on a busy
    machine, and run side by side on an idle one.

    Attributes:
        processor: Whether to leave out the time in which the process did not run. This is for
            calls that compute in one thread.
        wall_s: Returns the time, in s.
        used_s: Returns the processor time of the process, in s.
        own_s: Returns the processor time of the calling thread, in s.
    """

    processor: bool = False
    wall_s: Callable[[], float] = _wall_s
    used_s: Callable[[], float] = _used_s
    own_s: Callable[[], float] = _own_s

    def begin(self) -> tuple[float, float]:
        """The state of the clocks before a call."""
        return self.used_s() if self.processor else 0.0, self.wall_s()

    def ms_since(self, begin: tuple[float, float]) -> float:
        """The time since the state of the clocks, in ms."""
        wall_s = self.wall_s() - begin[1]
        # Other threads of the process may have run meanwhile.
        return 1e3 * (min(wall_s, self.used_s() - begin[0]) if self.processor else wall_s)

    def is_disturbed(self, call: Callable[[], object], n_runs: int = 8) -> bool:
        """Whether competing processes slow down a call, in the median of some runs."""
        shares = []
        for _ in range(n_runs):
            own_s, wall_s = self.own_s(), self.wall_s()
            call()
            shares.append((self.own_s() - own_s) / max(1e-9, self.wall_s() - wall_s))
        return float(np.median(shares)) < _DISTURBED


def processor_time_is_exact(
    providers: Sequence[str], used_s: Callable[[], float] = _used_s
) -> bool:
    """Whether processor time measures the calls of an execution provider.

    Accelerators compute outside the process, and some clocks go in steps: of 16 ms on Windows, and
    of some milliseconds under a profiler that uses the same timer.

    Args:
        providers: The execution providers of onnxruntime, in order of preference.
        used_s: Returns the processor time of the process, in s.
    """
    if providers[0] != "CPUExecutionProvider":
        return False
    begin_s, wall_s = used_s(), time.perf_counter()
    step_s = 0.0
    while step_s == 0.0 and time.perf_counter() - wall_s < _LONGEST_STEP_S:
        step_s = used_s() - begin_s
    return 0.0 < step_s < _LARGEST_STEP_S


def low_quartile(samples: Sequence[float]) -> tuple[float, float]:
    """The lower quartile of times: competing processes make runs slower only.

    Args:
        samples: Times, in ms.

    Returns:
        The lower quartile, in ms, and its standard error as a share of it, by order statistics.
    """
    low, quartile, high = quartile_interval(samples)
    noise = (high - low) / (2 * 1.96 * max(quartile, 1e-9))
    return float(np.percentile(samples, 25)), max(LEAST_NOISE, noise)


def quartile_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile between the ends of its 95 % confidence interval, by order statistics."""
    ordered = sorted(samples)
    n = len(ordered)
    middle, spread = 0.25 * n, 1.96 * (0.25 * 0.75 * n) ** 0.5
    at = (max(0, int(middle - spread)), int(middle), min(n - 1, int(middle + spread + 1)))
    return ordered[at[0]], ordered[at[1]], ordered[at[2]]
