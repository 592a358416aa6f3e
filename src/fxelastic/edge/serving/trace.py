"""What a runtime did over time, written to a file as it happens."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from fxelastic.edge.serving.events import Event, describe
from fxelastic.edge.serving.ladder import Step
from fxelastic.edge.serving.policy import Decision, Situation
from fxelastic.errors import UsageError
from fxelastic.spec import Arch

SCHEMA = "fxelastic.trace/1"


class Trace:
    """A file of JSON lines, one for each request, subnet, reading of the load, and event.

    Each line is an object with ``type``; times ``t`` are seconds since the trace began.

    * ``start``: ``schema``, ``budget_ms``.
    * ``subnet``: ``id``, ``arch``, ``latency_ms`` (estimated), ``accuracy``; comes before the first
      request that it served.
    * ``request``: ``t`` of its end, ``subnet``, ``latency_ms``.
    * ``load``: ``t``, ``r``, ``budget_ms``, ``limit_ms`` (T/r), ``subnet`` in use.
    * ``event``: ``t``, ``kind``, ``message``, and the event's details.

    Requests are written down by the control loop, not while they run. A file that can't be written
    any more (a full disk) is left, and `error` says why: serving goes on.

    Attributes:
        path: The file.
        error: Why nothing is written any more; empty while all is well.
    """

    def __init__(self, path: str | os.PathLike[str], budget_ms: float, start_s: float) -> None:
        """Begin a new file; it is empty until there is something to note.

        Args:
            path: The file; it must not exist, or be empty.
            budget_ms: The budget at the start.
            start_s: The time on the runtime's clock.

        Raises:
            UsageError: The file is there already, or can't be written.
        """
        self.path = Path(path)
        self.error = ""
        self._start_s = start_s
        self._ids: dict[tuple[Arch, float], int] = {}
        self._lock = threading.Lock()
        try:
            if self.path.exists() and self.path.stat().st_size:
                raise FileExistsError(f"{self.path} is there already")
            self._file = self.path.open("w", encoding="utf-8")
        except OSError as e:
            raise UsageError(
                f"the trace can't be written to {self.path}",
                expected="a file that is not there yet",
                got=describe(e),
            ) from e
        # Not written yet: a start that fails leaves a file that the next one may use.
        self._first = [{"type": "start", "schema": SCHEMA, "budget_ms": budget_ms}]

    def on_tick(self, situation: Situation, decision: Decision) -> None:
        """Note what a round of the control loop saw."""
        load = situation.load
        rows: list[dict[str, Any]] = []
        for seen in load.fresh:
            index = self._index(seen.step, rows)
            rows.append(
                {
                    "type": "request",
                    "t": self._t(seen.time_s),
                    "subnet": index,
                    "latency_ms": round(seen.actual_ms, 4),
                }
            )
        if load.ratio is not None and rows:
            index = self._index(decision.target, rows)
            rows.append(
                {
                    "type": "load",
                    "t": self._t(situation.now_s),
                    "r": round(load.ratio, 4),
                    "budget_ms": situation.budget_ms,
                    "limit_ms": round(decision.limit_ms, 4),
                    "subnet": index,
                }
            )
        self._write(rows)

    def on_event(self, event: Event) -> None:
        """Note an event."""
        row = {"type": "event", "t": self._t(event.time_s), "kind": event.kind}
        self._write([{**event.details, **row, "message": event.message}])

    def close(self) -> None:
        """Write what is left, and close the file."""
        with self._lock:
            if self._file.closed:
                return
            try:
                self._file.close()
            except OSError as e:
                self.error = describe(e)

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _t(self, time_s: float) -> float:
        return round(time_s - self._start_s, 6)

    def _index(self, step: Step, rows: list[dict[str, Any]]) -> int:
        """The number of a subnet; the first time, a row for it."""
        key = (step.arch, step.latency_ms)
        if key not in self._ids:
            self._ids[key] = len(self._ids)
            rows.append(
                {
                    "type": "subnet",
                    "id": self._ids[key],
                    "arch": str(step.arch),
                    "latency_ms": step.latency_ms,
                    "accuracy": step.accuracy,
                }
            )
        return self._ids[key]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        with self._lock:
            if self.error or self._file.closed or not rows:
                return
            try:
                # One write for whole lines: a reader never sees half of one.
                lines = [json.dumps(row) + "\n" for row in (*self._first, *rows)]
                self._file.write("".join(lines))
                self._file.flush()
                self._first = []
            except OSError as e:
                self.error = describe(e)
