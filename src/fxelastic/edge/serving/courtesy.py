"""Letting requests go first: a process that works beside them is stopped while they run."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

# Where one request follows another there is no time between them: each waits for the other process
# for this share of what it takes.
_SHARE = 0.03
# In less the other process hardly begins: to wake it takes some 50 µs.
_LEAST_S = 0.0001
# A longer wait is slept through. A shorter one is not, for sleeping takes up to 0.1 ms more.
_SLEEP_S = 0.0005
_WAKING_S = 0.0001
# Time between two requests that is worth waking the other process for, in seconds.
_PAUSE_S = 0.0005


class Courtesy:
    """Stops a process while requests run, and lets it work between them.

    A low priority is not enough: it decides who waits where there are more threads than processors,
    but cores share units and memory, and a request of several threads waits for the one thread that
    had to. It was seen to make one request in three half as slow again.

    Where requests leave no pause, a request waits for the process before it begins: 3 % of what it
    takes, or 0.1 ms at less than one request in 3 ms. So none is delayed by more than that. To let
    the process work during one request in forty took as long, and made those forty percent slower.

    Requests call `begin` and `end`; some time after the last one, somebody calls `rest`. Safe in
    any thread. Without signals that stop a process (Windows) it does nothing.

    Attributes:
        waits: Whether there is a process to stop; cheap to read.
        worked_s: How long processes were watched, in seconds.
        busy: Whether a request runs just now.
    """

    def __init__(self, share: float = _SHARE, busy: Callable[[], bool] = lambda: False) -> None:
        """Begin without a process.

        Args:
            share: Of a request's latency, that it waits for the process.
            busy: See the attribute.
        """
        self.waits = False
        self.worked_s = 0.0
        self.busy = busy
        self._share = share
        self._spins = (psutil.cpu_count() or 1) > 1
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._n_hurrying = 0
        self._stopped = False
        self._due_s = -math.inf
        self._pause_s = math.inf
        self._ended_s = -math.inf

    @contextmanager
    def watched(self, pid: int | None) -> Iterator[None]:
        """Stop this process while requests run, until the block ends; it then runs in any case.

        Args:
            pid: The process; None for none.
        """
        if pid is None or not hasattr(signal, "SIGSTOP"):
            yield
            return
        begin_s = time.monotonic()
        with self._lock:
            self._pid = pid
            self._look()
            if self.waits and self.busy():
                self._stop()
        try:
            yield
        finally:
            with self._lock:
                self._resume()
                self._pid = None
                self._look()
            self.worked_s += time.monotonic() - begin_s

    @contextmanager
    def hurry(self) -> Iterator[None]:
        """Let the process work, whatever runs, until the block ends: somebody waits for it."""
        with self._lock:
            self._n_hurrying += 1
            self._look()
            self._resume()
        try:
            yield
        finally:
            with self._lock:
                self._n_hurrying -= 1
                self._look()

    def begin(self, latency_s: float) -> None:
        """A request begins.

        Args:
            latency_s: What it will take, in seconds.
        """
        with self._lock:
            if not self.waits:
                return
            now_s = time.monotonic()
            self._pause_s = now_s - self._ended_s
            if self._stopped and now_s >= self._due_s:
                slice_s = max(self._share * latency_s, _LEAST_S)
                self._resume()
                self._wait(slice_s)
                # Of requests that overlap one waits, and of those that are quicker than they should
                # be each.
                self._due_s = now_s + 0.8 * slice_s / self._share
            self._stop()

    def end(self) -> None:
        """The last of the requests that ran has ended; another one may follow at once."""
        self._ended_s = time.monotonic()
        if self._pause_s >= _PAUSE_S:
            self.rest()

    def rest(self) -> None:
        """No request runs, and none has followed."""
        if self._stopped:
            with self._lock:
                self._resume()

    def _look(self) -> None:
        self.waits = self._pid is not None and not self._n_hurrying

    def _wait(self, slice_s: float) -> None:
        if slice_s > _SLEEP_S:
            time.sleep(slice_s - _WAKING_S)
        elif self._spins:
            until_s = time.monotonic() + slice_s
            while time.monotonic() < until_s:
                pass
        else:
            time.sleep(slice_s)

    def _stop(self) -> None:
        if not self._stopped:
            self._signal("SIGSTOP")
            self._stopped = True

    def _resume(self) -> None:
        if self._stopped:
            self._signal("SIGCONT")
            self._stopped = False

    def _signal(self, name: str) -> None:
        if self._pid is not None:
            with suppress(OSError):
                os.kill(self._pid, getattr(signal, name))
