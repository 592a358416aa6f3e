from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch

from fxelastic.ir import trees
from fxelastic.ir.value_names import value_names

_T = torch.zeros(1)
_Pair = namedtuple("_Pair", "boxes scores")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"input": _T, "N": _T, "lambda": _T, "größe": _T}, ("input", "N", "lambda", "größe")),
        ({"a": [_T, _T], "a_0": _T}, ("a_0_2", "a_1", "a_0")),
        ({"a": [_T], "b": {"x-y": _T, "x": _T}}, ("a_0", "b_x_y", "b_x")),
        ({"a-b": _T, "a_b": _T}, ("a_b_2", "a_b")),
        (_T, ("input",)),
        ((_T, [_T, 3]), ("input_0", "input_1_0")),
        (_Pair(_T, _T), ("boxes", "scores")),
        ({"": _T, "0": _T, "x": None}, ("input", "input_0")),
    ],
)
def test_each_tensor_has_the_users_name(value: Any, names: tuple[str, ...]) -> None:
    assert value_names(trees.flatten(value)[1]) == names


def test_names_that_are_taken_get_a_number() -> None:
    tree = trees.flatten({"x": _T, "x_2": _T, "y": _T})[1]
    assert value_names(tree, ("x", "y_2"), "output") == ("x_3", "x_2", "y")
