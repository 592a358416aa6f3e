"""The comparison finds every kind of difference, and only differences."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.models.compare import assert_same_output, tensors


@dataclass
class Output:
    """A user's output type."""

    logits: Tensor
    loss: Tensor | None = None


@dataclass
class OtherOutput(Output):
    """Another type with the same fields."""


class Pair(NamedTuple):
    """A named tuple of tensors."""

    left: Tensor
    right: Tensor


def nested() -> dict[str, Any]:
    """Every container at once."""
    x = torch.arange(6.0).view(2, 3)
    return {
        "plain": x,
        "list": [x + 1, (x + 2, None)],
        "pair": Pair(x, x > 2),
        "object": Output(logits=x * 2),
        "number": 3,
        "nan": torch.tensor([float("nan"), 1.0]),
    }


def test_equal_outputs_pass() -> None:
    assert_same_output(nested(), nested())
    assert_same_output(None, None)
    assert_same_output(torch.zeros(0, 3), torch.zeros(0, 3))
    assert_same_output(float("nan"), float("nan"))


def test_a_parameter_is_a_tensor() -> None:
    weight = torch.ones(2)
    assert_same_output(torch.nn.Parameter(weight), weight)


ONE = torch.ones(2, 3)

DIFFERENT: dict[str, tuple[Any, Any, str]] = {
    "value": (ONE, ONE + 1e-6, r"output: 6 of 6 elements differ .* first at \(0, 0\)"),
    "one value": (ONE, ONE.index_fill(0, torch.tensor([1]), 2.0), r"3 of 6 .* at \(1, 0\)"),
    "shape": (ONE, ONE.t(), r"output: shape \(2, 3\) against \(3, 2\)"),
    "broadcast": (ONE, ONE[:1], r"shape \(2, 3\) against \(1, 3\)"),
    "dtype": (ONE, ONE.double(), "dtype torch.float32 against torch.float64"),
    "nan": (ONE, ONE * float("nan"), "largest difference inf"),
    "bool": (ONE > 0, ONE < 0, "6 of 6 elements differ"),
    "integer": (torch.tensor([2**53 + 1]), torch.tensor([2**53]), "1 of 1 elements differ"),
    "scalar": (torch.tensor(1.0), torch.tensor(2.0), r"first at \(\): 1.0 against 2.0"),
    "none": (ONE, None, "Tensor against NoneType"),
    "list for tuple": ([ONE], (ONE,), "list against tuple"),
    "tuple for named tuple": (Pair(ONE, ONE), (ONE, ONE), "Pair against tuple"),
    "length": ((ONE,), (ONE, ONE), "1 items against 2"),
    "inside a list": ([ONE, [ONE]], [ONE, [ONE + 1]], r"output\[1\]\[0\]: 6 of 6"),
    "keys": ({"a": ONE}, {"b": ONE}, r"keys \['a'\] against \['b'\]"),
    "key order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "keys"),
    "dict type": ({"a": ONE}, OrderedDict(a=ONE), "dict against OrderedDict"),
    "dict value": ({"a": ONE}, {"a": ONE + 1}, r"output\['a'\]: 6 of 6"),
    "dataclass type": (Output(ONE), OtherOutput(ONE), "Output against OtherOutput"),
    "dataclass field": (Output(ONE, ONE), Output(ONE, None), r"output.loss: Tensor against None"),
    "dataclass value": (Output(ONE), Output(ONE + 1), r"output.logits: 6 of 6"),
    "number": ({"n": 3}, {"n": 4}, r"output\['n'\]: 3 against 4"),
    "number type": (3, 3.0, "int against float"),
    "string": ("a", "b", "'a' against 'b'"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_outputs_fail(name: str) -> None:
    left, right, message = DIFFERENT[name]
    with pytest.raises(AssertionError, match=message):
        assert_same_output(left, right)
    with pytest.raises(AssertionError):
        assert_same_output(right, left)


def test_tensors_lists_all_of_them() -> None:
    found = tensors(nested())
    assert len(found) == 7
    assert tensors(None) == tensors("text") == tensors([3, {}]) == []
