"""Ranges of values, and the scales that span them."""

from __future__ import annotations

import numpy as np
import pytest

from fxelastic.backends.onnxruntime.quantisation.ranges import Ranges, scale_of


def normal(n: int = 4096) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(n).astype(np.float32)


def found(method: str, *arrays: np.ndarray) -> tuple[float, float]:
    ranges = Ranges(method)
    for array in arrays:
        ranges.add({"x": array})
    return ranges.result()["x"]


def test_the_whole_range_of_all_batches_counts_and_zero_is_inside() -> None:
    assert found("minmax", np.float32([2, 3]), np.float32([1])) == (0.0, 3.0)
    assert found("minmax", np.float32([-2]), np.float32([-1])) == (-2.0, 0.0)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_a_single_outlier_is_cut_off(method: str) -> None:
    low, high = found(method, np.append(normal(200_000), np.float32(100)))
    assert -10 < low < -2
    assert 2 < high < 50


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_constant_and_infinite_values_give_a_usable_range(method: str) -> None:
    ranges = Ranges(method)
    ranges.add({"zero": np.zeros(8, np.float32), "mask": np.float32([0, -np.inf])})
    ranges.add({"empty": np.zeros(0, np.float32)})
    found = ranges.result()
    assert set(found) == {"zero"}
    assert scale_of(found["zero"]).scale > 0


def test_a_scale_spans_its_range() -> None:
    scale = scale_of((-1.0, 3.0))
    stored = np.round(np.array([-1.0, 0.0, 3.0]) / scale.scale) + scale.zero_point
    assert stored.min() >= 0
    assert stored.max() <= 255
    assert scale_of((0.0, 5.0)).zero_point == 0
    assert scale_of((-5.0, 0.0)).zero_point == 255
