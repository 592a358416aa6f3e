"""Errors keep their parts, read well, and survive a process boundary."""

from __future__ import annotations

import pickle

import pytest

from fxelastic.errors import (
    BundleError,
    CaptureError,
    ExportError,
    FxElasticError,
    InternalError,
    PartitionError,
    UsageError,
)

ALL = (
    FxElasticError,
    UsageError,
    CaptureError,
    PartitionError,
    ExportError,
    BundleError,
    InternalError,
)


def test_message_holds_every_part() -> None:
    error = UsageError("gamma is out of range", expected="(0, 1]", got="1.5", fix="pass 0.1")
    assert str(error) == (
        "gamma is out of range\n  expected: (0, 1]\n  got:      1.5\n  fix:      pass 0.1"
    )


def test_parts_are_optional() -> None:
    error = CaptureError("no", got="x")
    assert str(error) == "no\n  got:      x"
    assert (error.what, error.expected, error.got, error.fix) == ("no", None, "x", None)


def test_a_part_of_several_lines_stays_in_its_column() -> None:
    assert str(PartitionError("no", got="a\nb")) == "no\n  got:      a\n            b"


def test_control_characters_in_a_name_are_shown_as_escapes() -> None:
    error = UsageError("\x1b[2Jno branch 'é\u202e層'", got="a\n\tb\r\x00")
    assert str(error).startswith("\\x1b[2Jno branch 'é\\u202e層'")
    assert error.got == "a\n\tb\\r\\x00"


@pytest.mark.parametrize(
    "parts",
    [
        {"what": "w" * 10**6},
        {"what": "no", "got": "x" * 10**6},
        {"what": "no", "got": "層" * 1900, "expected": "a" * 3000, "fix": "\x00" * 3000},
        {"what": "no", "got": "a\n" * 5000, "fix": "b\n" * 5000},
        {"what": "no", "got": "🙂" * 1900},
    ],
)
def test_a_message_has_at_most_two_kilobytes(parts: dict[str, str]) -> None:
    error = UsageError(**parts)
    assert len(str(error).encode()) <= 2048
    assert "…" in str(error)
    short = [name for name, text in parts.items() if len(text) < 100]
    assert all(getattr(error, name) == parts[name] for name in short)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_internal_error_asks_for_a_report() -> None:
    assert "please report" in str(InternalError("lost a node"))
    assert "please report" not in str(InternalError("lost a node", fix="restart"))


def test_a_users_mistake_and_a_bug_are_told_apart() -> None:
    assert issubclass(UsageError, ValueError)
    assert not issubclass(InternalError, UsageError)
    assert not issubclass(CaptureError, InternalError)


@pytest.mark.parametrize("cls", ALL)
def test_error_survives_pickling(cls: type[FxElasticError]) -> None:
    error = cls("what", expected="e", got="g", fix="f")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
