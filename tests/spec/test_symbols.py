"""Sizes that vary: expressions, ranges, steps, and the sizes of actual inputs."""

from __future__ import annotations

import pytest

from fxelastic.spec.symbols import Dimension, Symbol, shape_at

SEQ = Symbol("seq", 16, 1, 64)
H = Symbol("H", 32, 32, None, 32)


@pytest.mark.parametrize(
    ("text", "sizes", "value"),
    [
        ("N", {"N": 3}, 3),
        ("seq+1", {"seq": 16}, 17),
        ("49*N", {"N": 2}, 98),
        ("N*(H//16)*(W//16)", {"N": 2, "H": 33, "W": 48}, 12),
        ("((((((H-1)//2))-1)//2))+1", {"H": 32}, 8),
        ("H/4", {"H": 32}, 8),
        ("Max(1,seq-3)", {"seq": 2}, 1),
        ("Mod(seq,5)", {"seq": 12}, 2),
        ("2*seq**2", {"seq": 3}, 18),
        ("-(-seq//4)", {"seq": 5}, 2),
    ],
)
def test_an_expression_has_the_value_that_python_gives(
    text: str, sizes: dict[str, int], value: int
) -> None:
    assert Dimension(text).at(sizes) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "f(N)", "N.real", "__import__('os')", "[N]", "N if N else 2", "1 <", "'N'", "True"),
        "+".join(["N"] * 5000),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_not_an_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an expression"):
        Dimension(text)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        *(("seq", {}), ("N//M", {"N": 1, "M": 0}), ("H/4", {"H": 3}), ("9**N", {"N": 99})),
        *(("floor(N,N)", {"N": 1}), ("Max(N)", {"N": 1}), ("(0-N)**0.5", {"N": 8})),
        *(("1e999", {}), ("1e999-1e999+N", {"N": 1})),
    ],
)
def test_an_expression_without_a_size_says_so(text: str, sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"can't be computed|is not a size"):
        Dimension(text).at(sizes)


@pytest.mark.parametrize(
    ("text", "size", "solved"),
    [
        ("seq", 5, ("seq", 5)),
        ("2*seq+1", 9, ("seq", 4)),
        ("2*seq+1", 8, ("seq", -1)),
        ("seq-3", 0, ("seq", 3)),
        ("seq+3", 2, ("seq", -1)),
        ("seq//2", 4, None),
        ("0.5*seq", 4, None),
        ("N*seq", 4, None),
    ],
)
def test_a_linear_expression_is_solved(
    text: str, size: int, solved: tuple[str, int] | None
) -> None:
    assert Dimension(text).solve(size) == solved


def test_shapes_are_computed() -> None:
    assert shape_at(("N", 3, "H/4"), {"N": 2, "H": 64}) == (2, 3, 16)


def test_a_range_has_a_step() -> None:
    assert [n for n in range(130) if H.holds(n)] == [32, 64, 96, 128]
    assert str(H) == "H[32.. by 32]"
    assert str(SEQ) == "seq[1..64]"
    assert H.aligned(33) == 64
    assert (SEQ.large(4), SEQ.large(2), H.large(4)) == (64, 32, 128)


def test_torch_takes_sizes_of_one_for_constants() -> None:
    assert Symbol("seq", 1).traced == 2
    assert Symbol("H", 32, 32, None, 32).traced == 64
    assert SEQ.traced == 16
