"""The status line and the metrics file of ``fxelastic serve``."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from fxelastic.errors import UsageError

if TYPE_CHECKING:
    from fxelastic.cli.serve_metrics import Metrics
    from fxelastic.edge.serving.runtime import Runtime

_EVERY_S = 1.0


# The start of a metrics file.
_METRICS_START = b"# HELP fxelastic_"


class ServeMonitor:
    """Writes a status line to stderr and a metrics file, once a second.

    On a terminal, one line is overwritten. Elsewhere a line is written when the state has changed.
    """

    def __init__(
        self,
        runtime: Runtime,
        metrics: Metrics | None,
        path: str | None,
        *,
        quiet: bool,
    ) -> None:
        """Watch a runtime.

        Args:
            runtime: The runtime.
            metrics: Its metrics.
            path: The metrics file; None to write no file.
            quiet: Write no status line.

        Raises:
            UsageError: The file exists and does not contain metrics.
        """
        self._runtime = runtime
        self._metrics = metrics
        self._path = None if path is None else _own(Path(path))
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._last: object = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="fxelastic-status", daemon=True)

    def __enter__(self) -> ServeMonitor:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._terminal and not self._quiet:
            print(file=sys.stderr)

    def note(self, text: str) -> None:
        """Write a message on a separate line, unless quiet."""
        if not self._quiet:
            self.complain(text)

    def complain(self, text: str) -> None:
        """Write a message about a failure, even if quiet."""
        with self._lock:
            end = "\r\x1b[K" if self._terminal and not self._quiet else ""
            print(f"{end}fxelastic: {text}", file=sys.stderr, flush=True)

    def show(self) -> None:
        """Write the status line and the metrics file now."""
        status = self._runtime.status()
        if self._metrics is not None and self._path is not None:
            temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            try:
                temporary.write_text(self._metrics.text(status))
                temporary.replace(self._path)
            except OSError as e:
                self._path = None
                self.complain(f"warning: metrics are no longer written: {e.strerror or e}")
        if self._quiet:
            return
        changed = (status.state, status.step, status.budget_met, status.n_switches)
        with self._lock:
            if self._terminal:
                print(f"\r\x1b[K{status}", end="", file=sys.stderr, flush=True)
            elif changed != self._last:
                print(f"fxelastic: {status}", file=sys.stderr, flush=True)
        self._last = changed

    def _work(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self.show()


def _own(path: Path) -> Path:
    """Check that a file is new or a metrics file, and return its path."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_METRICS_START))
    except OSError:
        # It does not exist yet, or writing it raises the error.
        return path
    if start not in (b"", _METRICS_START):
        raise UsageError(
            f"{path} exists and does not contain metrics; it would be overwritten",
            expected="a file that fxelastic serve wrote, or a new file",
            got=f"a file that begins with {start!r}",
            fix="choose another file",
        )
    return path
