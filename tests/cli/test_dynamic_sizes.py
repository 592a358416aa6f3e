"""``--dynamic``: sizes that vary, on the command line."""

from __future__ import annotations

from typing import Any

import pytest
from torch.export import Dim

from fxelastic.cli.dynamic_sizes import load_dynamic_shapes
from fxelastic.errors import UsageError

FAR = Dim("s", min=0).max


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return (value.__name__, value.min, value.max) if isinstance(value, Dim) else value


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], None),
        (["ids:1=seq"], {"ids": {1: "seq"}}),
        (["ids:0=batch", "ids:1=seq"], {"ids": {0: "batch", 1: "seq"}}),
        (["ids:1=seq[2..512]"], {"ids": {1: ("seq", 2, 512)}}),
        (["a:1=s[2..8]", "b:1=s"], {"a": {1: ("s", 2, 8)}, "b": {1: ("s", 2, 8)}}),
        (["x:2=H[..64]"], {"x": {2: ("H", 1, 64)}}),
        (["p:2=past[0..]", "m:1=past + new"], {"p": {2: ("past", 0, FAR)}, "m": {1: "past + new"}}),
        (["x:0=STATIC", "x:1=AUTO"], {"x": {0: Dim.STATIC, 1: Dim.AUTO}}),
    ],
)
def test_sizes_are_read(texts: list[str], expected: Any) -> None:
    assert plain(load_dynamic_shapes(texts)) == expected


def test_a_range_without_an_upper_end_has_none() -> None:
    found = load_dynamic_shapes(["ids:1=seq[4..]"])
    assert found is not None
    assert found["ids"][1].min == 4
    assert found["ids"][1].max > 2**31


@pytest.mark.parametrize(
    "texts",
    [
        ["seq"],
        ["ids=seq"],
        ["ids:x=seq"],
        ["ids:1="],
        ["ids:1=2seq"],
        ["ids:1=seq[8..2]"],
        ["ids:1=seq[2,8]"],
        ["ids:1=AUTO[2..8]"],
        ["ids:1=a+"],
        ["ids:1=a+b[2..8]"],
    ],
)
def test_another_form_is_refused_with_an_example(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="another form") as caught:
        load_dynamic_shapes(texts)
    assert "input_ids:1=seq[2..512]" in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["a:1=s[2..8]", "b:1=s[2..9]"], "s two ranges"),
        (["a:1=s", "a:1=t"], "dimension 1 of a twice"),
    ],
)
def test_contradictions_are_refused(texts: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_dynamic_shapes(texts)


@pytest.mark.parametrize(
    "text", ["x:1=s[1..1]", "x:1=s[..0]", f"x:1=s[{'9' * 5000}..]", f"x:{'9' * 5000}=s"]
)
def test_a_range_that_torch_has_no_size_for_is_refused(text: str) -> None:
    """Symptom: torch's AssertionError, or Python's ValueError for numbers of many digits."""
    with pytest.raises(UsageError, match="--dynamic") as raised:
        load_dynamic_shapes([text])
    assert "seq[2..512]" in str(raised.value)
