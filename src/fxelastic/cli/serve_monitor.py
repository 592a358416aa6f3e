"""What ``fxelastic serve`` shows while it runs."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from fxelastic.edge.serving.metrics import prometheus
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    from fxelastic.edge.serving.metrics import LatencyHistogram
    from fxelastic.edge.serving.runtime import Runtime

_EVERY_S = 1.0


# What the first line of a file of metrics begins with.
_METRICS_START = b"# HELP fxelastic_"


class ServeMonitor:
    """A line on stderr that tells how things stand, and a file of metrics; once a second.

    On a terminal the line is written over; elsewhere it comes only when something has changed.
    """

    def __init__(
        self,
        runtime: Runtime,
        latencies: LatencyHistogram,
        metrics: str | None,
        *,
        quiet: bool,
    ) -> None:
        """Watch a runtime.

        Args:
            runtime: The runtime.
            latencies: Its requests' latencies.
            metrics: The file of metrics; None for none.
            quiet: Write no line.

        Raises:
            UsageError: The file of metrics is there and holds something else.
        """
        self._runtime = runtime
        self._latencies = latencies
        self._metrics = None if metrics is None else _own(Path(metrics))
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
        """Tell a person something, on a line of its own."""
        if not self._quiet:
            self.complain(text)

    def complain(self, text: str) -> None:
        """Tell a person of something that went wrong, also when the rest is quiet."""
        with self._lock:
            end = "\r\x1b[K" if self._terminal and not self._quiet else ""
            print(f"{end}fxelastic: {text}", file=sys.stderr, flush=True)

    def show(self) -> None:
        """Write the line and the file now."""
        status = self._runtime.status()
        if self._metrics is not None:
            temporary = self._metrics.with_name(f".{self._metrics.name}.{os.getpid()}")
            try:
                temporary.write_text(prometheus(status, self._latencies))
                temporary.replace(self._metrics)
            except OSError as e:
                self._metrics = None
                self.complain(f"warning: no more metrics: {e.strerror or e}")
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
    """The path of a file of metrics; refuses one that holds something else."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_METRICS_START))
    except OSError:
        # There is none yet, or writing it will tell.
        return path
    if start not in (b"", _METRICS_START):
        raise UsageError(
            f"{path} is there and holds no metrics; it would be lost",
            expected="a file that fxelastic serve wrote, or none",
            got=f"one that begins with {start!r}",
            fix="name another file",
        )
    return path
