"""Calibration data: a part for ranges, and a part for errors."""

from __future__ import annotations

from fxelastic import partition
from fxelastic.backends.onnxruntime.quantisation.calibration import CalibrationData
from tests.sequence_first import STEPS, Tagger, samples


def test_a_single_batch_is_divided_where_the_samples_are() -> None:
    part = partition(Tagger().eval(), 1.0, example_inputs=samples(3))
    data = CalibrationData.of(part, [samples(5)])
    assert (data.n_samples, data.n_held_out) == (3, 2)
    shapes = [[a["x"].shape, a["state"].shape] for a in (*data.batches, *data.held_out)]
    assert shapes == [[(STEPS, 3, 8), (1, 3, 8)], [(STEPS, 2, 8), (1, 2, 8)]]
