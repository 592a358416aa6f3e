"""Warnings of the library stand on lines of their own, once."""

from __future__ import annotations

import logging
import sys

import pytest

from fxelastic.cli import inspect as inspect_command
from fxelastic.cli import main


def warn(args: object) -> int:
    logger = logging.getLogger("fxelastic.edge.profiling")
    for text in ("the table is old", "the table is old", "the device is busy"):
        logger.warning("%s", text)
    logger.info("not shown")
    return 0


def test_each_warning_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspect_command, "run", warn)
    before = list(logging.getLogger("fxelastic").handlers)
    assert main(["inspect", "bundle"]) == 0
    expected = "fxelastic: warning: the table is old\nfxelastic: warning: the device is busy\n"
    assert capsys.readouterr().err == expected
    assert logging.getLogger("fxelastic").handlers == before
    assert main(["inspect", "bundle"]) == 0
    assert capsys.readouterr().err == expected


def test_a_progress_line_gives_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspect_command, "run", warn)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["inspect", "bundle"]) == 0
    assert capsys.readouterr().err.startswith("\r\x1b[Kfxelastic: warning: the table is old\n")
