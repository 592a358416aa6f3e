"""Weights of 7 bits."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from fxelastic.backends.onnxruntime.quantisation.reduced import reduce_range
from tests import int8_bundles as int8

# A worker exports the bundle once.
pytestmark = pytest.mark.xdist_group("export of 8-bit branches")


@pytest.mark.parametrize("name", ["u8s8+original@1", "dynamic+original@2"])
def test_weights_are_halved_from_the_same_bytes(name: str) -> None:
    bundle = int8.bundle()
    model = onnx.load(bundle.model_path(name))
    reduced = reduce_range(model)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = [k for k, v in stored.items() if v.dtype == np.int8 and v.ndim > 1]
    same = {t.name: numpy_helper.to_array(t) for t in reduced.graph.initializer}
    assert weights
    assert all(np.array_equal(same[k], stored[k]) for k in weights)
    del reduced.graph.output[:]
    for weight in weights:
        info = onnx.helper.make_tensor_value_info(f"{weight}_7bit", onnx.TensorProto.INT8, None)
        reduced.graph.output.append(info)
    session = onnxruntime.InferenceSession(reduced.SerializeToString())
    feeds = {
        value.name: np.zeros([size or 1 for size in bundle.values[value.name].shape], np.float32)
        for value in session.get_inputs()
    }
    for weight, halved in zip(weights, session.run(None, feeds), strict=True):
        assert np.abs(halved).max() <= 64
        assert np.abs(2 * halved.astype(int) - stored[weight]).max() <= 1
