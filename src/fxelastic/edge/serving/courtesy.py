"""Letting requests go first: a process that works beside them is stopped while they run."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Where one request follows another there is no time between them: the other process works during
# one in so many.
_EVERY = 40
# Time between two requests that is worth waking the other process for, in seconds.
_PAUSE_S = 0.0005


class Courtesy:
    """Stops a process while requests run, and lets it work between them.

    A low priority is not enough: it decides who waits where there are more threads than processors,
    but cores share units and memory, and a request of several threads waits for the one thread that
    had to. `benchmarks/serve.py` has what this leaves, and what a low priority alone does ("in a
    hurry").

    Requests call `begin` and `end`; some time after the last one, somebody calls `rest`. Safe in
    any thread. Without signals that stop a process (Windows) it does nothing.

    Attributes:
        waits: Whether there is a process to stop; cheap to read.
        worked_s: How long processes were watched, in seconds.
    """

    def __init__(self, every: int = _EVERY) -> None:
        """Begin without a process.

        Args:
            every: During one request in so many the process works, too.
        """
        self.waits = False
        self.worked_s = 0.0
        self._every = every
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._hurried = False
        self._stopped = False
        self._n = 0
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
            self.waits = not self._hurried
        try:
            yield
        finally:
            with self._lock:
                self.waits = False
                self._resume()
                self._pid = None
            self.worked_s += time.monotonic() - begin_s

    @property
    def hurried(self) -> bool:
        """Whether what the process makes is needed more than undisturbed requests."""
        return self._hurried

    @hurried.setter
    def hurried(self, hurried: bool) -> None:
        if hurried == self._hurried:
            return
        with self._lock:
            self._hurried = hurried
            self.waits = self._pid is not None and not hurried
            if hurried:
                self._resume()

    def begin(self) -> None:
        """A request begins."""
        with self._lock:
            if not self.waits:
                return
            self._pause_s = time.monotonic() - self._ended_s
            self._n += 1
            if self._n % self._every == 0:
                self._resume()
            elif not self._stopped:
                self._signal("SIGSTOP")
                self._stopped = True

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

    def _resume(self) -> None:
        if self._stopped:
            self._signal("SIGCONT")
            self._stopped = False

    def _signal(self, name: str) -> None:
        if self._pid is not None:
            with suppress(OSError):
                os.kill(self._pid, getattr(signal, name))
