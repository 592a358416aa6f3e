"""Warnings of the library on stderr: each once, on a line of its own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class WarningLines(logging.Handler):
    """Prints the warnings of a command, and no message twice."""

    def __init__(self) -> None:
        """Print warnings and errors."""
        super().__init__(logging.WARNING)
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message unless it was printed before."""
        message = record.getMessage()
        if message in self._printed:
            return
        self._printed.add(message)
        # A progress line may be there; it is drawn again below.
        start = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{start}fxelastic: warning: {message}", file=sys.stderr, flush=True)


@contextmanager
def warning_lines() -> Iterator[None]:
    """Print the warnings of the package while a command runs."""
    logger, handler = logging.getLogger("fxelastic"), WarningLines()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
