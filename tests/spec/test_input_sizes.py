"""The sizes in a call's inputs."""

from __future__ import annotations

import numpy as np
import pytest

from fxelastic.errors import UsageError
from fxelastic.spec.input_sizes import input_sizes, sizes_of
from fxelastic.spec.symbols import Symbol

SEQ = Symbol("seq", 16, 1, 64)
H = Symbol("H", 32, 32, None, 32)


def test_sizes_follow_from_shapes() -> None:
    shapes = [("x", ("N", "seq"), (2, 5)), ("mask", ("N", 1, "seq", "seq"), (2, 1, 5, 5))]
    assert sizes_of(shapes, {"seq": SEQ}) == {"N": 2, "seq": 5}


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([("x", ("N", "seq"), (2, 65))], r"seq = 65 is outside of seq\[1..64\]"),
        ([("x", ("H",), (40,))], r"H = 40 is outside of H\[32.. by 32\]"),
        (
            [("x", ("seq",), (5,)), ("y", ("seq",), (6,))],
            "have different sizes for seq",
        ),
        ([("x", ("N",), (5,)), ("y", ("N",), (6,))], "hold different numbers of samples"),
        ([("x", ("seq", "seq"), (5, 6))], "'x' has two sizes for seq"),
        ([("x", ("2*seq",), (5,))], "no whole number"),
        ([("x", ("H", "H//2"), (32, 17))], r"H//2 is 16 for H = 32"),
    ],
)
def test_sizes_that_contradict_a_model_are_refused(
    shapes: list[tuple[str, tuple[int | str, ...], tuple[int, ...]]], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        sizes_of(shapes, {"seq": SEQ, "H": H})


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((2, 3, 5), np.int64), "1 dtype"),
        (np.zeros((2, 15), np.float32), "1 rank"),
        (np.zeros((2, 4, 5), np.float32), "1 size"),
    ],
)
def test_the_first_value_that_does_not_fit_is_refused(
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], problem: str
) -> None:
    inputs = [("ids", "int64", ("N", "seq")), ("x", "float32", ("N", 3, "seq"))]
    ids = np.zeros((2, 5), np.int64)

    def refuse(i: int, what: str) -> UsageError:
        return UsageError(f"{i} {what}")

    fits = [ids, np.zeros((2, 3, 5), np.float32)]
    assert input_sizes(inputs, fits, {"seq": SEQ}, refuse) == {"N": 2, "seq": 5}
    with pytest.raises(UsageError, match=problem):
        input_sizes(inputs, [ids, array], {"seq": SEQ}, refuse)
