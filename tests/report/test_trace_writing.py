"""What a trace tells of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fxelastic.edge.serving.events import Event
from fxelastic.edge.serving.monitor import Load, Observation
from fxelastic.edge.serving.policy import Decision, Situation
from fxelastic.errors import UsageError
from fxelastic.report.trace import Trace
from tests.edge.serving.simulation import entry, table_of

FAST, SLOW = entry(5.0, 0.8), entry(10.0, 0.9)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def seen(*observations: Observation) -> Situation:
    return Situation(103.0, 12.0, Load(1.2, 1.2, 5, (), observations), SLOW, table_of(5, 10))


def test_requests_subnets_load_and_events_are_written(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with Trace(path, 12.0, start_s=100.0) as trace:
        trace.on_tick(
            seen(Observation(101.0, SLOW, 11.0), Observation(102.0, FAST, 6.0)),
            Decision(FAST, True, 9.0, "why"),
        )
        trace.on_tick(seen(), Decision(FAST, True, 9.0, "no request, nothing to say"))
        trace.on_tick(seen(Observation(103.0, FAST, 6.5)), Decision(FAST, True, 9.0, "why"))
        trace.on_event(Event(104.0, "switched", "down", {"arch": "s5"}))
    read = rows(path)
    assert [row["type"] for row in read] == [
        *("start", "subnet", "request", "subnet", "request", "load", "request", "load", "event"),
    ]
    assert read[0] == {"type": "start", "schema": "fxelastic.trace/1", "budget_ms": 12.0}
    assert read[1]["arch"] == "s10"
    assert read[2] == {"type": "request", "t": 1.0, "subnet": 0, "latency_ms": 11.0}
    assert read[5] == {
        **{"type": "load", "t": 3.0, "r": 1.2},
        **{"budget_ms": 12.0, "limit_ms": 9.0, "subnet": 1},
    }
    assert read[-1] == {
        **{"type": "event", "t": 4.0, "kind": "switched"},
        **{"message": "down", "arch": "s5"},
    }


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("precious")
    with pytest.raises(UsageError, match="can't be written"):
        Trace(path, 12.0, 0.0)
    assert path.read_text() == "precious"
    with pytest.raises(UsageError, match="can't be written"):
        Trace(tmp_path / "no" / "folder", 12.0, 0.0)


def test_a_full_disk_ends_the_trace_and_nothing_else() -> None:
    trace = Trace("/dev/full", 12.0, 0.0)
    trace.on_event(Event(1.0, "closed", "end"))
    assert "No space" in trace.error
    trace.on_event(Event(2.0, "closed", "end"))
    trace.close()


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "t.jsonl", 12.0, 0.0)
    trace.close()
    trace.close()
    trace.on_event(Event(1.0, "closed", "end"))
    assert rows(tmp_path / "t.jsonl") == []
    # Of nothing, nothing is lost.
    with Trace(tmp_path / "t.jsonl", 12.0, 0.0) as again:
        again.on_event(Event(1.0, "started", "begin"))
    assert len(rows(tmp_path / "t.jsonl")) == 2
