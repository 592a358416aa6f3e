"""A line on stderr that shows the progress of a command and the remaining time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_FORMAT = "fxelastic: {desc}: {percentage:.0f}% after {elapsed}, {remaining} left{postfix}"
_EVERY_S = 0.2
_PLAIN_EVERY_S = 10.0


class ProgressLine:
    """Shows progress: rewrites one line on a terminal, or prints a new line every 10 s elsewhere.

    Without tqdm, which devices need not install, it shows nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        """Create the line; nothing is shown yet.

        Args:
            quiet: Never show anything.
        """
        self._tqdm = None if quiet else _tqdm()
        self._bar: Any = None

    def update(self, task: str, share: float, details: str = "") -> None:
        """Show progress.

        Args:
            task: The name of the task; a new task starts a new line and a new clock.
            share: The share of the task that is done, from 0 to 1.
            details: Text to append.
        """
        if self._tqdm is None:
            return
        if self._bar is None or task != self._bar.desc:
            self.close()
            terminal = sys.stderr.isatty()
            self._bar = self._tqdm(
                total=1.0,
                desc=task,
                bar_format=_FORMAT,
                file=sys.stderr if terminal else _Lines(sys.stderr),
                mininterval=_EVERY_S if terminal else _PLAIN_EVERY_S,
                miniters=0,
                delay=1e-9,  # nothing before the first update
            )
        self._bar.set_postfix_str(details, refresh=False)
        self._bar.update(min(share, 1.0) - self._bar.n)

    def close(self) -> None:
        """End the line; its last state stays visible."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Lines:
    """Turns the updates of a line into separate lines, for a log."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self._file.write(f"{line}\n")

    def flush(self) -> None:
        self._file.flush()


@contextmanager
def progress_line(*, quiet: bool) -> Iterator[ProgressLine]:
    """A progress line that is closed at the end, even after an error."""
    line = ProgressLine(quiet=quiet)
    try:
        yield line
    finally:
        line.close()


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
