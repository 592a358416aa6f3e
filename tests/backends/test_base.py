"""Fusion rules are found by name, those of third parties too."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from fxelastic.backends import base, fusion_rules
from fxelastic.backends.onnxruntime.fusion_rules import ONNXRUNTIME
from fxelastic.errors import UsageError


def provide(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    """Pretend that installed packages have these entry points, as (name, value)."""
    found = [EntryPoint(name, value, base.ENTRY_POINT_GROUP) for name, value in points]
    monkeypatch.setattr(base, "entry_points", lambda group: found)


def test_built_in_rules_are_found() -> None:
    assert fusion_rules("onnxruntime") is ONNXRUNTIME
    assert fusion_rules("none").rules == ()


def test_unknown_name_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, ("elsewhere", "a:b"))
    with pytest.raises(UsageError, match="onnxruntime, none, elsewhere"):
        fusion_rules("tensorrt")


def test_third_party_rules_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, ("elsewhere", "fxelastic.backends.onnxruntime.fusion_rules:ONNXRUNTIME"))
    assert fusion_rules("elsewhere") is ONNXRUNTIME


def test_name_taken_twice_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, ("elsewhere", "a:b"), ("elsewhere", "c:d"))
    with pytest.raises(UsageError, match="registered twice"):
        fusion_rules("onnxruntime")


def test_built_in_name_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, ("onnxruntime", "a:b"))
    with pytest.raises(UsageError, match="registered twice"):
        fusion_rules("onnxruntime")


def test_one_distribution_found_twice_is_no_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, ("elsewhere", "a:b"), ("elsewhere", "a:b"))
    assert fusion_rules("none").rules == ()


def test_entry_point_to_something_else_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, ("elsewhere", "os.path:join"))
    with pytest.raises(UsageError, match="does not refer to fusion rules"):
        fusion_rules("elsewhere")


def test_entry_point_that_cannot_be_imported_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    provide(monkeypatch, ("elsewhere", "no_such_module_anywhere:rules"))
    with pytest.raises(UsageError, match="can't be loaded"):
        fusion_rules("elsewhere")
