"""A run-time trace: written as it happens, and read as data."""

from __future__ import annotations

import json
import math
import os
import threading
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fxelastic.edge.serving.events import describe
from fxelastic.errors import UsageError
from fxelastic.files import read_regular
from fxelastic.spec.cascade import Servable
from fxelastic.spec.resources import LATENCY

if TYPE_CHECKING:
    from fxelastic.edge.candidates import Candidate
    from fxelastic.edge.serving.events import Event
    from fxelastic.edge.serving.policy import Decision, Situation

SCHEMA = "fxelastic.trace/1"

#: Seconds over which percentiles are taken.
WINDOW_S = 0.5


class Trace:
    """A file of JSON lines, one for each request, subnet, reading of the load, and event.

    Each line is an object with ``type``; times ``t`` are seconds since the trace began.

    * ``start``: ``schema``, ``budget_ms``.
    * ``subnet``: ``id``, ``arch``, ``latency_ms`` (estimated), ``accuracy``; comes before the first
      request that it served.
    * ``request``: ``t`` of its end, ``subnet``, ``latency_ms``; if other sizes than the batch
      vary, its ``sizes`` and its ``estimated_ms``, which is null for sizes without an estimate.
    * ``load``: ``t``, ``r``, ``budget_ms``, ``limit_ms`` (T/r), ``subnet`` in use, and of the last
      10 s ``p50_ms``, ``p95_ms``, ``p99_ms``, and ``over``, the share of requests over the budget;
      if known the ``load_index``, in a second ``load_ahead`` and ``r_ahead``, and ``energy_mj``.
    * ``event``: ``t``, ``kind``, ``message``, and the event's details.
    * ``phase``: ``t`` and ``name`` of what began then, if the program that serves notes it.

    The control loop writes requests, after they have run. If the file can't be written any more (a
    full disk), `error` says why, and serving goes on.

    Attributes:
        path: The file.
        error: Why nothing is written any more; empty without an error.
    """

    def __init__(self, path: str | os.PathLike[str], budget_ms: float, start_s: float) -> None:
        """Begin a new file; it is empty until there is something to write.

        Args:
            path: The file. It must be empty or absent.
            budget_ms: The budget at the start.
            start_s: The time on the runtime's clock.

        Raises:
            UsageError: The file exists and is not empty, or can't be written.
        """
        self.path = Path(path)
        self.error = ""
        self._start_s = start_s
        self._ids: dict[tuple[Servable, float], int] = {}
        self._lock = threading.Lock()
        try:
            if self.path.exists() and self.path.stat().st_size:
                raise FileExistsError(f"{self.path} exists")
            self._file = self.path.open("w", encoding="utf-8")
        except OSError as e:
            raise UsageError(
                f"the trace can't be written to {self.path}",
                expected="a new or empty file",
                got=describe(e),
                fix="choose another file, or delete this one",
            ) from e
        # Not written yet: a start that fails leaves a file that the next one may use.
        self._first = [{"type": "start", "schema": SCHEMA, "budget_ms": budget_ms}]

    def on_tick(self, situation: Situation, decision: Decision) -> None:
        """Write what a round of the control loop saw."""
        load = situation.load
        rows: list[dict[str, Any]] = []
        for seen in load.fresh:
            index, ms = self._index(seen.candidate, rows), seen.estimated_ms
            row = {
                "type": "request",
                "t": self._t(seen.time_s),
                "subnet": index,
                LATENCY: round(seen.actual_ms, 4),
            }
            if seen.sizes is not None:
                row["sizes"] = dict(seen.sizes)
                row["estimated_ms"] = None if ms is None else round(ms, 4)
            rows.append(row)
        if load.ratio is not None and rows:
            index = self._index(decision.target, rows)
            row = {
                "type": "load",
                "t": self._t(situation.now_s),
                "r": round(load.ratio, 4),
                "budget_ms": situation.budget_ms,
                "limit_ms": round(decision.limit_ms, 4),
                "subnet": index,
            }
            if (tail := situation.latency) is not None:
                for name in ("p50_ms", "p95_ms", "p99_ms"):
                    row[name] = round(getattr(tail, name), 4)
                row["over"] = round(tail.share_over, 4)
            row |= _known(situation, decision)
            rows.append(row)
        self._write(rows)

    def on_event(self, event: Event) -> None:
        """Write an event."""
        row = {"type": "event", "t": self._t(event.time_s), "kind": event.kind}
        self._write([{**event.details, **row, "message": event.message}])

    def phase(self, name: str, time_s: float) -> None:
        """Note that something begins, such as a load; plots mark it.

        Args:
            name: What begins.
            time_s: The time on the runtime's clock.
        """
        self._write([{"type": "phase", "t": self._t(time_s), "name": name}])

    def close(self) -> None:
        """Write the rest, and close the file."""
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

    def _index(self, candidate: Candidate, rows: list[dict[str, Any]]) -> int:
        """The number of a subnet; the first time, a row for it."""
        key = (candidate.arch, candidate.ms)
        if key not in self._ids:
            self._ids[key] = len(self._ids)
            rows.append(
                {
                    "type": "subnet",
                    "id": self._ids[key],
                    "arch": str(candidate.arch),
                    LATENCY: candidate.ms,
                    "accuracy": candidate.accuracy,
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


@dataclass(frozen=True)
class TracedSubnet:
    """A subnet of a trace.

    Attributes:
        arch: The subnet as text.
        ms: Its estimated latency.
        accuracy: Its accuracy in the search.
    """

    arch: str
    ms: float
    accuracy: float


@dataclass(frozen=True)
class TraceData:
    """The contents of a trace file; times are seconds since its start.

    Attributes:
        subnets: By their number.
        requests: ``(end, subnet, latency in ms)`` of each request, by end. If other sizes than the
            batch vary, latencies are converted to the sizes that the budget is for, and requests of
            sizes without an estimate are left out.
        loads: ``(time, r, budget in ms)`` of each reading.
        events: ``(time, kind, message)``.
        load_indices: ``(time, load index)`` of each reading that has one.
        expected: ``(time, r expected in a second)`` of each reading that has one.
        phases: ``(time, name)`` of each phase that was noted.
        n_torn: Lines that could not be read: a killed process may leave one.
    """

    subnets: Mapping[int, TracedSubnet] = field(default_factory=dict)
    requests: Sequence[tuple[float, int, float]] = ()
    loads: Sequence[tuple[float, float, float]] = ()
    events: Sequence[tuple[float, str, str]] = ()
    load_indices: Sequence[tuple[float, float]] = ()
    expected: Sequence[tuple[float, float]] = ()
    phases: Sequence[tuple[float, str]] = ()
    n_torn: int = 0

    def medians(self, window_s: float = WINDOW_S) -> list[tuple[float, float]]:
        """``(time, median latency in ms)`` over the requests of the last seconds."""
        return self.percentiles(50, window_s)

    def percentiles(self, percent: float, window_s: float = WINDOW_S) -> list[tuple[float, float]]:
        """``(time, percentile of the latency in ms)`` over the requests of the last seconds."""
        window: list[float] = []  # Sorted, so that each step only adds and removes a few values.
        first, found = 0, []
        for end, _, latency_ms in self.requests:
            insort(window, latency_ms)
            # As floats, large times have no earlier ones this close.
            while self.requests[first][0] <= min(end - window_s, math.nextafter(end, 0)):
                del window[bisect_left(window, self.requests[first][2])]
                first += 1
            place = (len(window) - 1) * percent / 100
            below = int(place)
            above = min(below + 1, len(window) - 1)
            share = place - below
            found.append((end, window[below] * (1 - share) + window[above] * share))
        return found


def read_trace(path: str | os.PathLike[str]) -> TraceData:
    """Read a file that ``fxelastic serve --trace`` wrote.

    Args:
        path: The file.

    Raises:
        UsageError: The file can't be read, or is not a trace.
    """
    try:
        text = read_regular(Path(path), follow=True).decode("utf-8", errors="replace")
    except OSError as e:
        raise UsageError(
            f"the trace {path} can't be read",
            expected="a file that fxelastic serve --trace wrote",
            got=f"{type(e).__name__}: {e.strerror or e}",
        ) from e
    lines = text.splitlines()
    rows = [_row(line) for line in lines]
    if not rows or rows[0].get("type") != "start" or rows[0].get("schema") != SCHEMA:
        raise UsageError(
            f"{path} is not a trace",
            expected=f"a first line with the schema {SCHEMA}",
            got=(lines[0][:100] if lines else "an empty file"),
        )
    subnets: dict[int, TracedSubnet] = {}
    requests: list[tuple[float, int, float]] = []
    loads: list[tuple[float, float, float]] = []
    events: list[tuple[float, str, str]] = []
    indices: list[tuple[float, float]] = []
    expected: list[tuple[float, float]] = []
    phases: list[tuple[float, str]] = []
    n_torn = 0
    for row in rows[1:]:
        try:
            kind = row["type"]
            if kind == "subnet":
                subnets[int(_number(row["id"]))] = TracedSubnet(
                    str(row["arch"]), _number(row["latency_ms"]), float(row["accuracy"])
                )
            elif kind == "request":
                number, latency_ms = int(_number(row["subnet"])), _number(row["latency_ms"])
                if "estimated_ms" in row:
                    if row["estimated_ms"] is None:
                        continue
                    latency_ms = _number(
                        latency_ms * subnets[number].ms / _number(row["estimated_ms"])
                    )
                requests.append((_number(row["t"]), number, latency_ms))
            elif kind == "load":
                loads.append((_number(row["t"]), _number(row["r"]), _number(row["budget_ms"])))
                if "load_index" in row:
                    indices.append((_number(row["t"]), _number(row["load_index"])))
                if "r_ahead" in row:
                    expected.append((_number(row["t"]), _number(row["r_ahead"])))
            elif kind == "phase":
                phases.append((_number(row["t"]), str(row["name"])))
            elif kind == "event":
                events.append((_number(row["t"]), str(row["kind"]), str(row["message"])))
        except (KeyError, TypeError, ValueError, ArithmeticError):
            n_torn += 1
    requests = sorted(request for request in requests if request[1] in subnets)
    return TraceData(subnets, requests, loads, events, indices, expected, phases, n_torn)


def _known(situation: Situation, decision: Decision) -> dict[str, float]:
    """The load index, what is expected, and the energy of a request, as far as they are known."""
    resources, ahead = situation.resources, situation.outlook
    found = {
        "load_index": None if resources is None else resources.load_index,
        "load_ahead": None if ahead is None else ahead.load_index,
        "r_ahead": None if ahead is None else ahead.ratio,
        "energy_mj": decision.target.others.get("energy_mj"),
    }
    return {name: round(value, 4) for name, value in found.items() if value is not None}


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)
