"""An arch round-trips through text; a malformed one is refused with its position."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxelastic import UsageError
from fxelastic.spec import Arch
from tests.spec.spaces import enumerate_paths, spaces

ids = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:@#+-]*", fullmatch=True)


@given(st.lists(ids, min_size=1, unique=True))
def test_round_trips_through_text(names: list[str]) -> None:
    arch = Arch(tuple(names))
    assert Arch.parse(str(arch)) == arch
    assert list(arch) == names
    assert len(arch) == len(names)


@given(spaces(max_blocks=4, max_extra=4))
def test_every_subnet_round_trips_through_text(space: Any) -> None:
    for arch in enumerate_paths(space):
        again = Arch.parse(str(arch))
        space.validate(again)
        assert again == arch
        assert hash(again) == hash(arch)


def test_text_is_the_ids() -> None:
    assert str(Arch(("original@0", "merged@1-3"))) == "original@0,merged@1-3"
    assert Arch.parse(" original@0 , merged@1-3\n") == Arch(("original@0", "merged@1-3"))


@given(st.text())
def test_any_text_parses_or_is_refused_with_a_reason(text: str) -> None:
    reason = None
    try:
        arch = Arch.parse(text)
    except UsageError as e:
        reason = e.expected
    assert reason or Arch.parse(str(arch)) == arch


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text of an arch must not be empty"),
        (" \n", "the text of an arch must not be empty"),
        ("a,,b", "position 1 of the arch: it is empty"),
        ("a,b,", "position 2 of the arch: it is empty"),
        (",a", "position 0 of the arch: it is empty"),
        ("a,b c", "position 1 of the arch: an id has only letters"),
        ("a;b", "position 0 of the arch: an id has only letters"),
        ("a,b,a", "position 2 of the arch: branch 'a' is already at position 0"),
        (b"a", "must be a string"),
        (None, "must be a string"),
    ],
)
def test_malformed_text_is_refused(text: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Arch.parse(text)


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        ((), "at least one branch"),
        ("original@0", "must be a tuple of branch ids"),
        (7, "must be a tuple of branch ids"),
        (("a", 3), "position 1 of the arch: an id must be a string, not int"),
    ],
)
def test_malformed_is_refused(branches: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Arch(branches)


def test_is_a_value() -> None:
    arch = Arch(["a", "b"])  # type: ignore[arg-type]
    assert arch == Arch(("a", "b"))
    assert len({arch, Arch(("a", "b")), Arch(("b", "a"))}) == 2
    assert pickle.loads(pickle.dumps(arch)) == arch
