"""The number of threads that torch computes with."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from fxelastic.errors import UsageError

logger = logging.getLogger(__name__)

# Steps before the first measurement: they fill caches that later steps reuse.
_WARM_UP = 3
# Steps over which a number of threads is measured.
_TRIES = 5
# Steps in a row whose median is the time of a step.
_RECENT = 5
# A step that takes this many times as long as before has collapsed.
_COLLAPSED = 1.8
# A number this many times as slow as the fastest is not tried again.
_MUCH_SLOWER = 3.0
# Fewer threads are chosen only if this many times as fast: near ties must not change results.
_SLOWER = 1.2
# Steps after which fewer threads than usual are measured again.
_STEPS_BETWEEN_TRIALS = 200


@contextlib.contextmanager
def computing_with(threads: int | None = None) -> Iterator[None]:
    """Set the number of threads that torch computes with, as a context manager.

    Used as a decorator, it applies to each call of the function. The previous number of threads
    is restored on exit.

    Args:
        threads: The number of threads; `usual_threads` if None.

    Raises:
        UsageError: ``threads`` is not an integer of at least 1.
    """
    check_threads(threads)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(usual_threads() if threads is None else threads)
        yield
    finally:
        torch.set_num_threads(before)


def check_threads(threads: object) -> None:
    """Check the argument ``threads`` of a public function.

    Raises:
        UsageError: It is neither None nor an integer of at least 1.
    """
    if threads is None or (type(threads) is int and threads >= 1):
        return
    raise UsageError(
        f"threads must be at least 1, got {threads!r}",
        expected="an integer of at least 1, or None for the default",
        got=repr(threads),
    )


def usual_threads() -> int:
    """Torch's own number of threads, but no more than this process has processors."""
    return min(torch.get_num_threads(), processors())


def processors(root: Path = Path("/")) -> int:
    """The number of processors that the affinity and the cgroup's quota allow this process.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    if hasattr(os, "sched_getaffinity"):
        number = len(os.sched_getaffinity(0))
    else:
        number = os.cpu_count() or 1
    return max(1, math.ceil(min(number, _quota(root))))


def _quota(root: Path) -> float:
    """Processors that the cgroup (version 2) of this process and those above it allow."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return math.inf
    folder = root / "sys/fs/cgroup" / own
    lowest = math.inf
    # In a container the path may be the host's, of which only the last folders are there.
    while folder.is_relative_to(root / "sys/fs/cgroup"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            lowest = min(lowest, int(quota) / int(period))
        folder = folder.parent
    return lowest


def thread_counts(threads: int | None, *, fixed: bool) -> tuple[int, ...]:
    """The numbers of threads that a run may use, the usual one first.

    Args:
        threads: The user's number; None to choose one by measurement.
        fixed: Use the usual number.
    """
    if threads is not None:
        return (threads,)
    number = usual_threads()
    # Deterministic algorithms are requested for the same bits each time.
    if fixed or torch.are_deterministic_algorithms_enabled():
        return (number,)
    return tuple(number >> i for i in range(number.bit_length()))


class ThreadChoice:
    """Chooses the number of threads by the times of the steps themselves.

    After a few steps, the next ones try all numbers in turn, and the largest number that is not
    clearly slower than the best is chosen. When steps get much slower, or after a while with fewer
    threads than usual, the next steps try again. A single number is never changed.

    Attributes:
        number: The number of threads in use.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        clock: Callable[[], float] = time.perf_counter,
        set_threads: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        """Begin with the first of several numbers.

        Args:
            counts: The numbers of threads, see `thread_counts`.
            clock: The time, in seconds.
            set_threads: Sets the number of threads.
        """
        self._counts = tuple(counts)
        self._clock = clock
        self._set_threads = set_threads
        self.number = self._counts[0]
        self._chosen = len(self._counts) == 1
        self._trials: dict[int, list[float]] = {}
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._best = math.inf
        self._collapsed: tuple[float, float] | None = None
        self._warned = False
        self._steps = 0

    @property
    def chosen(self) -> int | None:
        """The chosen number; None before the first choice."""
        return self.number if self._chosen else None

    def resume(self, number: int | None) -> None:
        """Use the number that an interrupted run had chosen, if it may be used here."""
        if number in self._counts:
            assert number is not None
            self.number, self._chosen = number, True

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """The context of one step."""
        if len(self._counts) == 1:
            yield
            return
        number = self._next()
        self._set_threads(number)
        began = self._clock()
        yield
        seconds = self._clock() - began
        if self._trials:
            self._trials[number].append(seconds)
            if not self._open():
                self._choose()
        else:
            self._watch(seconds)

    def _next(self) -> int:
        return min(self._open(), key=lambda n: len(self._trials[n]), default=self.number)

    def _open(self) -> list[int]:
        """The numbers still to try."""
        fastest = min((t for times in self._trials.values() for t in times), default=math.inf)
        return [
            n
            for n, times in self._trials.items()
            # The first step with a number may be slow in itself.
            if len(times) < 2 or (len(times) < _TRIES and min(times) <= _MUCH_SLOWER * fastest)
        ]

    def _watch(self, seconds: float) -> None:
        self._steps += 1
        self._recent.append(seconds)
        if not self._chosen:
            if self._steps == _WARM_UP:
                self._try_all()
            return
        if len(self._recent) == _RECENT:
            now = statistics.median(self._recent)
            self._best = min(self._best, now)
            if now > _COLLAPSED * self._best:
                self._collapsed = self._best, now
                self._try_all()
                return
        if self.number < self._counts[0] and self._steps >= _STEPS_BETWEEN_TRIALS:
            self._try_all()

    def _try_all(self) -> None:
        self._trials = {number: [] for number in self._counts}

    def _choose(self) -> None:
        """End a trial and forget the times of earlier steps."""
        typical = {number: statistics.median(times) for number, times in self._trials.items()}
        limit = _SLOWER * min(typical.values())
        before = self.number
        self.number = next(n for n in self._counts if typical[n] <= limit)
        if self._collapsed is not None and self.number < before and not self._warned:
            logger.warning(
                "a step takes %.2g s instead of %.2g s, as it does when other programs use the "
                "processors: training continues with %d of %d threads, which take %.2g s",
                *reversed(self._collapsed),
                self.number,
                self._counts[0],
                typical[self.number],
            )
            self._warned = True
        elif not self._chosen or self.number != before:
            logger.info("training computes with %d threads", self.number)
        self._chosen, self._collapsed = True, None
        self._trials = {}
        self._recent.clear()
        self._best, self._steps = math.inf, 0
