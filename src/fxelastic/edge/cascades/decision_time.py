"""The time of a decision between two segments of a cascade, measured on the device."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.cascades.confidence import max_softmax
from fxelastic.edge.searching.choice import default_result
from fxelastic.edge.sessions import SessionMaker
from fxelastic.edge.stopwatch import Stopwatch
from fxelastic.edge.verified_model import VerifiedModel
from fxelastic.spec import EXIT

_OPSET, _IR_VERSION = 17, 8
# Decisions in a sample, and samples, of which the first ones warm up.
_REPEATS, _SAMPLES, _WARM = 16, 24, 4


def decision_ms(bundle: Bundle, maker: SessionMaker, watch: Stopwatch) -> float:
    """What a decision of a cascade takes besides its branches, for one sample.

    A session that computes nothing runs, and the confidence of its result is computed: the lower
    quartile of the times. A small model may take no longer as a whole, so cascades with many exits
    would be slower than the model itself.

    Args:
        bundle: The bundle.
        maker: Makes the session.
        watch: Times it.

    Returns:
        The time in ms; 0 if the bundle has no exits or its result has no class scores.
    """
    if not any(spec.kind == EXIT for spec in bundle.space.branches):
        return 0.0
    info = bundle.outputs[default_result(bundle)]
    if len(info.dims) != 2 or not isinstance(info.dims[1], int) or info.dims[1] < 2:
        return 0.0
    session = maker.open_branch(VerifiedModel("a decision", _identity(info.dims[1])))
    logits = np.zeros((1, info.dims[1]), np.float32)
    times = []
    for _ in range(_SAMPLES):
        begin = watch.begin()
        for _ in range(_REPEATS):
            max_softmax(session.run(["y"], {"x": logits})[0])
        times.append(watch.ms_since(begin) / _REPEATS)
    return float(np.quantile(times[_WARM:], 0.25))


def _identity(n_classes: int) -> bytes:
    """A model that returns its input."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n_classes]) for name in "xy"
    ]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "identity", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    return bytes(model.SerializeToString())
