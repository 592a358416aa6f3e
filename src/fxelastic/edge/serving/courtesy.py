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

# Where one request follows another there is no time between them: each is delayed for the other
# process by this share of what it takes.
_SHARE = 0.03
# Of which this is for waking and stopping it, and for what it pushes out of the caches.
_COST_S = 0.00005
# In less than this it hardly begins.
_LEAST_S = 0.00007
# A longer wait is slept through. A shorter one is not, for sleeping takes up to 0.1 ms more.
_SLEEP_S = 0.0005
_WAKING_S = 0.0001
# Time between two requests that is worth waking the other process for, in seconds.
_PAUSE_S = 0.0005
# What can neither be stopped nor divided, since it is done in the serving process, is done in
# this share of the time: too few requests meet it to be seen at their 99th percentile. A thread
# that makes way (SCHED_IDLE) is no way out: the threads of the session that it makes are such, too,
# which only a privileged process can change, and one request in two was as late as without. To
# construct the session in a usual thread and initialise it in one of low priority and short slices
# halves what the request that meets it is delayed by (of 4 ms, +31 % in place of +77 %). But it
# takes three times as long, and leans on what onnxruntime keeps to itself; and its constructor
# alone holds the interpreter's lock for 0.3 ms with five nodes and for 0.9 ms with sixty. A process
# for each subnet could be stopped like the one below, but every request would be 8 % slower for it:
# 7.2 in place of 6.6 ms, for the threads of another process are to be woken each time.
RARELY = 0.005
_LOOK_S = 0.02
# It waits so long for a pause between requests, which is as long as it may take itself.
_PATIENCE_S = 0.25
# Between requests that follow each other none runs, either, but not for so long.
_QUIET_S = 0.002
_QUIET_LOOKS = 2


class Courtesy:
    """Stops a process while requests run, and lets it work between them.

    A low priority is not enough: it decides who waits where there are more threads than processors,
    but cores share units and memory, and a request of several threads waits for the one thread that
    had to. It was seen to make one request in three half as slow again.

    Where requests leave no pause, they wait for the process a little before they begin: none is
    delayed by more than 3 %, or by 0.12 ms and no more than once in 3 ms. To let the process work
    during one request in forty took as long, or twice as long beside competing processes, and
    slowed those down by forty percent.

    Requests call `begin` and `end`; some time after the last one, somebody calls `rest`. Safe in
    any thread. Without signals that stop a process (Windows) it stops none.

    Work within this process can't be stopped; it is done piece by piece, with `pace` after each.
    A piece that is not small begins in a pause, with `await_pause`, where there is one.

    Attributes:
        waits: Whether there is a process to stop; cheap to read.
        elsewhere_s: How long processes were watched, and pieces of work apart, in seconds.
        busy: Whether a request runs just now.
    """

    def __init__(self, share: float = _SHARE, busy: Callable[[], bool] = lambda: False) -> None:
        """Begin without a process.

        Args:
            share: Of a request's latency, by which it is delayed for the process.
            busy: See the attribute.
        """
        self.waits = False
        self.elsewhere_s = 0.0
        self.busy = busy
        self._share = share
        self._spins = (psutil.cpu_count() or 1) > 1
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._n_hurrying = 0
        self._stopped = False
        self._held = False
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
            self.elsewhere_s += time.monotonic() - begin_s

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

    def pace(self, piece_s: float, share: float = _SHARE) -> None:
        """Wait after a piece of work in this process, as long as requests run and nobody hurries.

        Args:
            piece_s: How long it took, in seconds.
            share: Of the time, which work may take.
        """
        begin_s = now_s = time.monotonic()
        until_s = begin_s + piece_s / share
        while (self._held or (now_s < until_s and self.busy())) and not self._n_hurrying:
            time.sleep(_LOOK_S if self._held else min(until_s - now_s, _LOOK_S))
            now_s = time.monotonic()
        self.elsewhere_s += now_s - begin_s

    def await_pause(self) -> None:
        """Wait until no request has run for a moment; not for long, and not if somebody hurries."""
        begin_s = now_s = time.monotonic()
        n_quiet = 0
        while self._held or (now_s < begin_s + _PATIENCE_S and n_quiet < _QUIET_LOOKS):
            if self._n_hurrying:
                break
            time.sleep(_QUIET_S)
            now_s = time.monotonic()
            n_quiet = 0 if self.busy() else n_quiet + 1
        self.elsewhere_s += now_s - begin_s

    def hold(self, held: bool) -> None:
        """Have all work wait from the next request on, or not; to measure against."""
        self._held = held

    def begin(self, latency_s: float) -> float:
        """A request begins.

        Args:
            latency_s: What it will take, in seconds.

        Returns:
            For how long it was made to wait, in seconds.
        """
        waited_s = 0.0
        with self._lock:
            if not self.waits:
                return waited_s
            now_s = time.monotonic()
            self._pause_s = now_s - self._ended_s
            if self._stopped and now_s >= self._due_s and not self._held:
                slice_s = max(self._share * latency_s - _COST_S, _LEAST_S)
                self._resume()
                self._wait(slice_s)
                waited_s = time.monotonic() - now_s
                # Of requests that overlap one waits, and of those that are quicker than they should
                # be each.
                self._due_s = now_s + 0.8 * (slice_s + _COST_S) / self._share
            self._stop()
        return waited_s

    def end(self) -> None:
        """The last of the requests that ran has ended; another one may follow at once."""
        self._ended_s = time.monotonic()
        if self._pause_s >= _PAUSE_S:
            self.rest()

    def rest(self) -> None:
        """No request runs, and none has followed."""
        if self._stopped and not self._held:
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
        # What interrupts this thread in between must not leave one stopped that seems to run.
        if not self._stopped:
            self._stopped = True
            self._signal("SIGSTOP")

    def _resume(self) -> None:
        if self._stopped:
            self._signal("SIGCONT")
            self._stopped = False

    def _signal(self, name: str) -> None:
        if self._pid is not None:
            with suppress(OSError):
                os.kill(self._pid, getattr(signal, name))
