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


@pytest.mark.parametrize("scale", [1e-1, 1e-3, 1e-7, 1e-30])
@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_a_batch_of_small_values_before_usual_ones_takes_no_bins(method: str, scale: float) -> None:
    ranges = Ranges(method)
    for array in (np.float32(scale) * normal(), normal(20_000), 2 * normal(20_000)):
        ranges.add({"x": array})
    (counts, edges, *_) = ranges._histograms.histogram_dict["x"]
    assert len(counts) <= 3000
    assert counts.sum() == 44_096
    assert edges[0] == pytest.approx(-edges[-1])
    low, high = ranges.result()["x"]
    # What a single batch with all values gives, up to the width of a bin.
    alone = found(
        method, np.concatenate([np.float32(scale) * normal(), normal(20_000), 2 * normal(20_000)])
    )
    assert (low, high) == pytest.approx(alone, rel=0.1)


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
