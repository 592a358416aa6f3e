"""Kinds are found by name; duplicates and unknown kinds are refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from fxelastic import UsageError
from fxelastic.branches import DEFAULT_KINDS, all_kinds, branch_kind, branch_kinds, registry

GROUP = registry.ENTRY_POINT_GROUP
REAL = "fxelastic.branches.original:Original"


def register(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    """Have other packages provide these."""
    found = [EntryPoint(name, value, GROUP) for name, value in entries]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == GROUP else [])


BUILT_IN = tuple(entry.name for entry in registry.BUILT_IN)


def test_the_originals_come_first_and_then_the_default_kinds() -> None:
    assert BUILT_IN[: 1 + len(DEFAULT_KINDS)] == ("original", *DEFAULT_KINDS)
    assert all_kinds() == BUILT_IN[1:]


@pytest.mark.parametrize("kind", [entry.name for entry in registry.BUILT_IN])
def test_built_in_kinds_are_frozen_dataclasses(kind: str) -> None:
    maker: Any = branch_kind(kind)
    assert dataclasses.is_dataclass(maker)
    assert maker() == maker()
    with pytest.raises(dataclasses.FrozenInstanceError):
        maker().option = 1


@pytest.mark.parametrize("kind", ["leaving", "Merged", "Original", ""])
def test_unknown_kind_lists_the_known_ones(kind: str) -> None:
    with pytest.raises(UsageError, match=f"no branch kind {kind!r} in this release") as caught:
        branch_kind(kind)
    assert caught.value.expected == "one of " + ", ".join(BUILT_IN)


def test_other_packages_add_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, ("other", REAL), ("early", REAL))
    assert branch_kinds() == (*BUILT_IN, "early", "other")
    assert branch_kind("other") is branch_kind("original")
    with pytest.raises(UsageError, match="early, other"):
        branch_kind("leaving")


def test_one_package_found_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, ("other", REAL), ("other", REAL))
    assert branch_kinds() == (*BUILT_IN, "other")


@pytest.mark.parametrize("kind", ["other", "original"])
def test_kind_registered_twice_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, (kind, "a:A"), (kind, "b:B"))
    with pytest.raises(UsageError, match=f"branch kind {kind!r} is registered twice"):
        branch_kinds()


@pytest.mark.parametrize("value", ["fxelastic.spec:ORIGINAL", "fxelastic.spec:Arch"])
def test_entry_point_that_is_not_a_kind_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, ("other", value))
    with pytest.raises(UsageError, match="entry point 'other' does not refer to a branch kind"):
        branch_kind("other")


def test_kinds_are_imported_when_asked_for() -> None:
    code = (
        "import sys; from fxelastic.branches import branch_kinds, branch_kind; branch_kinds();"
        "print('fxelastic.branches.original' in sys.modules); branch_kind('original');"
        "print('fxelastic.branches.original' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
