"""A line on stderr that tells how far a command is, and how long the rest takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_EVERY_S = 0.2
_PLAIN_EVERY_S = 10.0


class ProgressLine:
    """On a terminal the line is written over; elsewhere a new one comes now and then."""

    def __init__(self, *, quiet: bool) -> None:
        """Begin.

        Args:
            quiet: Write nothing.
        """
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._task = ""
        self._begin_s = self._shown_s = time.monotonic()
        self._open = self._ended = False

    def update(self, task: str, share: float, details: str = "") -> None:
        """Tell what is being done.

        Args:
            task: What; a new one starts a new line and a new clock.
            share: How much of it is done, from 0 to 1.
            details: What else there is to say.
        """
        now = time.monotonic()
        if task != self._task:
            self.close()
            self._ended = False
            self._task, self._begin_s, self._shown_s = task, now, now - _PLAIN_EVERY_S
        due = now - self._shown_s >= (_EVERY_S if self._terminal else _PLAIN_EVERY_S)
        if self._quiet or not (due or (share >= 1 and not self._ended)):
            return
        self._ended = share >= 1
        self._shown_s = now
        spent_s = now - self._begin_s
        left = f", {_time(spent_s * (1 - share) / share)} left" if 0 < share < 1 else ""
        text = f"{task}: {share:.0%} after {_time(spent_s)}{left}"
        text += f"; {details}" if details else ""
        if self._terminal:
            print(f"\r\x1b[Kfxelastic: {text}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(f"fxelastic: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the line as it is, and begin a new one."""
        if self._open:
            print(file=sys.stderr)
            self._open = False


@contextmanager
def progress_line(*, quiet: bool) -> Iterator[ProgressLine]:
    """A line that is closed at the end, however that comes."""
    line = ProgressLine(quiet=quiet)
    try:
        yield line
    finally:
        line.close()


def _time(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60}:{whole % 60:02} min"
