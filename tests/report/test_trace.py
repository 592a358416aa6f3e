"""Reading and drawing traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fxelastic.errors import UsageError
from fxelastic.report.trace import Trace, read_trace
from fxelastic.report.trace_figure import plot_trace, write_plot

ROWS: list[dict[str, Any]] = [
    {"type": "start", "schema": "fxelastic.trace/1", "budget_ms": 12.0},
    {"type": "subnet", "id": 0, "arch": "a", "latency_ms": 10.0, "accuracy": 0.9},
    *({"type": "request", "t": i / 10, "subnet": 0, "latency_ms": 10.0 + i} for i in range(10)),
    {"type": "load", "t": 1.0, "r": 1.5, "budget_ms": 12.0, "limit_ms": 8.0, "subnet": 0},
    {"type": "event", "t": 1.0, "kind": "switched", "message": "down", "arch": "b"},
    {"type": "subnet", "id": 1, "arch": "b", "latency_ms": 5.0, "accuracy": 0.8},
    {"type": "request", "t": 1.1, "subnet": 1, "latency_ms": 7.5},
]


def written(path: Path, rows: list[dict[str, Any]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t.jsonl", ROWS))
    assert [subnet.arch for subnet in trace.subnets.values()] == ["a", "b"]
    assert len(trace.requests) == 11
    assert trace.requests[-1] == (1.1, 1, 7.5)
    assert trace.loads == [(1.0, 1.5, 12.0)]
    assert trace.events == [(1.0, "switched", "down")]
    assert trace.n_torn == 0


def test_a_torn_line_is_counted(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t.jsonl", ROWS, '{"type": "request", "t": 1.2, "sub'))
    assert trace.n_torn == 1
    assert len(trace.requests) == 11


def test_the_median_is_of_the_last_seconds(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t.jsonl", ROWS))
    medians = dict(trace.medians(window_s=0.25))
    assert medians[0.0] == 10.0
    assert medians[0.5] == 14.0


@pytest.mark.parametrize("text", ["", "hello\n", '{"type": "start", "schema": "other"}\n', "[1]\n"])
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match="not a trace"):
        read_trace(path)
    with pytest.raises(UsageError, match="can't be read"):
        read_trace(tmp_path / "nothing")


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_a_plot_is_drawn(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    trace = read_trace(written(tmp_path / "t.jsonl", rows))
    write_plot(trace, tmp_path / "t.png", "title")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.jsonl", "t.png"]


def test_the_plot_has_latency_budget_accuracy_and_r(tmp_path: Path) -> None:
    figure = plot_trace(read_trace(written(tmp_path / "t.jsonl", ROWS)))
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["latency (ms)", "score", "r"]
    assert figure.axes[0].get_yscale() == "log"
    shown = figure.axes[0].get_legend_handles_labels()[1]
    assert "p95 of 0.5 s" in shown
    assert "budget" in shown


def test_phases_are_written_read_and_marked(tmp_path: Path) -> None:
    with Trace(tmp_path / "t.jsonl", 12.0, start_s=100.0) as trace:
        trace.phase("alone", 100.0)
        trace.phase("two other programs", 101.5)
    found = read_trace(tmp_path / "t.jsonl")
    assert found.phases == [(0.0, "alone"), (1.5, "two other programs")]
    figure = plot_trace(found)
    assert [text.get_text() for text in figure.axes[0].texts] == ["alone", "two other programs"]


def test_the_percentile_is_of_the_last_seconds(tmp_path: Path) -> None:
    found = dict(read_trace(written(tmp_path / "t.jsonl", ROWS)).percentiles(95, window_s=10.0))
    assert found[0.9] == pytest.approx(18.55)
    assert found[0.0] == 10.0


def test_a_plot_that_can_t_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t.jsonl", ROWS))
    (tmp_path / "t.odd").write_text("old")
    with pytest.raises(UsageError, match="can't be written"):
        write_plot(trace, tmp_path / "t.odd")
    assert (tmp_path / "t.odd").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.jsonl", "t.odd"]
    with pytest.raises(UsageError, match="can't be written"):
        write_plot(trace, tmp_path / "no" / "t.png")
