"""Repetition in a sequence of operators is found without names."""

from __future__ import annotations

import pytest

from fxelastic.passes.repeats import structural_units


def units(text: str) -> str:
    """Each element's unit as a digit; a dot for none."""
    return "".join("." if u is None else u.rpartition(":")[2] for u in structural_units(list(text)))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("", ""),
        ("abc", "..."),
        ("ababab", "001122"),
        ("sabababh", ".001122."),
        ("aaaa", "0123"),
        ("abcabcxyxy", "0001112233"),
        ("aabaab", "000111"),
        ("ab" * 5 + "c", "0011223344."),
    ],
)
def test_units(kinds: str, expected: str) -> None:
    assert units(kinds) == expected
