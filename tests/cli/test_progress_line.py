"""The progress line: overwritten on a terminal, lines of their own in a log."""

from __future__ import annotations

import io
import sys

import pytest

from fxelastic.cli.progress_line import ProgressLine, progress_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, quiet: bool = False) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_line(quiet=quiet) as line:
        for share in (0.0, 0.25, 0.5, 1.0):
            line.update("measuring", share, "3 branches")
        line.update("searching", 0.0)
        line.update("searching", 1.0)
    return stream.getvalue()


def test_a_log_gets_the_beginning_and_the_end_of_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, io.StringIO()).splitlines()
    assert all(
        line.startswith(("fxelastic: measuring: ", "fxelastic: searching: ")) for line in lines
    )
    assert sum("measuring: 100% after 00:00" in line for line in lines) == 1
    assert sum("searching: 100%" in line for line in lines) == 1
    assert any("3 branches" in line for line in lines)
    assert len(lines) <= 4


def test_a_terminal_gets_one_line_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, Terminal())
    assert text.count("\n") == 2
    assert text.count("\r") >= 2


def test_nothing_is_shown_when_quiet_or_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO(), quiet=True) == ""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert shown(monkeypatch, io.StringIO()) == ""


def test_a_share_that_exceeds_the_whole_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    line = ProgressLine(quiet=False)
    line.update("measuring", 1.5)
    line.close()
    assert "100%" in stream.getvalue()
