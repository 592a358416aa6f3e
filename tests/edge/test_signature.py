"""What may be passed to a runtime, and what comes back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.signature import BundleSignature
from fxelastic.errors import UsageError
from fxelastic.spec.manifest import ModelInfo
from fxelastic.spec.value_info import ValueInfo


def signature(*inputs: ValueInfo, structure: Any = None) -> BundleSignature:
    model = ModelInfo("Net", "0" * 64, 1, dynamic_batch=True, batch_size=2)
    manifest = SimpleNamespace(structure=structure or {"tensor": 0}, model=model, caches=())
    bundle = SimpleNamespace(inputs=inputs, outputs=(), manifest=manifest)
    return BundleSignature(cast(Bundle, bundle))


IMAGE = ValueInfo("x", "float32", ("N", 3, 8, 8))
IDS = ValueInfo("ids", "int64", ("N", 5))
FLAT = ValueInfo("flat", "float32", ("4*N",))


def image(n: int = 2) -> np.ndarray[Any, Any]:
    return np.zeros((n, 3, 8, 8), np.float32)


def test_arrays_are_taken_as_they_are() -> None:
    x, ids = image(), np.zeros((2, 5), np.int64)
    bound = signature(IMAGE, IDS).bind((x,), {"ids": ids})
    assert bound["x"] is x
    assert bound["ids"] is ids
    assert list(bound) == ["x", "ids"]


def test_what_is_no_array_becomes_one() -> None:
    bound = signature(IDS).bind(([[1, 2, 3, 4, 5]],), {})
    assert bound["ids"].shape == (1, 5)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing: x, ids"),
        ((image(), np.zeros((2, 5), np.int64), 3), {}, "at most 2 inputs"),
        ((image(),), {"x": image()}, "given twice"),
        ((image(),), {"y": image()}, "not an input"),
        ((image().astype(np.float64), np.zeros((2, 5), np.int64)), {}, "float64"),
        ((image()[0], np.zeros((2, 5), np.int64)), {}, "pass an array of 4 dimensions"),
        ((image()[:, :2], np.zeros((2, 5), np.int64)), {}, r"\[2, 2, 8, 8\]"),
        ((image(0), np.zeros((0, 5), np.int64)), {}, r"outside of N\[1\.\.\]"),
        ((image(2), np.zeros((3, 5), np.int64)), {}, "'x' and 'ids' hold different numbers"),
    ],
)
def test_what_the_model_does_not_take_is_refused(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        signature(IMAGE, IDS).bind(args, kwargs)


def test_a_multiple_of_the_batch_size_counts() -> None:
    both = signature(IMAGE, FLAT)
    both.bind((image(2), np.zeros(8, np.float32)), {})
    for size, message in ((9, "no whole number"), (12, "2 in 'x', 3 in 'flat'")):
        with pytest.raises(UsageError, match=message):
            both.bind((image(2), np.zeros(size, np.float32)), {})


def test_results_have_the_model_s_structure() -> None:
    outputs = [np.zeros(1), np.ones(1)]
    assert signature().result(outputs) is outputs[0]
    tree = {"dict": {"a": {"tensor": 1}, "b": {"tuple": [{"tensor": 0}]}}, "type": "Output"}
    result = signature(structure=tree).result(outputs)
    assert result["a"] is outputs[1]
    assert result["b"][0] is outputs[0]
