"""The errors of 8-bit models against their float models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from fxelastic.backends.onnxruntime.quantisation.exact import with_unsigned_weights
from fxelastic.backends.onnxruntime.quantisation.ranges import Array
from fxelastic.backends.onnxruntime.running import RefusedError, open_session


class NotMadeError(Exception):
    """A branch can't be made; the message has the reason."""


class Judge:
    """Measures the error of 8-bit models against their float model."""

    def __init__(self, model: onnx.ModelProto, batches: Sequence[Mapping[str, Array]]) -> None:
        self._outputs = [value.name for value in model.graph.output]
        self._batches = batches
        self._expected = self._run(model)

    def error(self, model: onnx.ModelProto) -> float:
        """The largest relative squared error of an output, with exact sums."""
        try:
            actual = self._run(with_unsigned_weights(model))
        except RefusedError as e:
            raise NotMadeError(f"onnxruntime refuses it: {e.got}") from e
        return relative_error(actual, self._expected)

    def _run(self, model: onnx.ModelProto) -> list[list[Array]]:
        session = open_session(model.SerializeToString())
        inputs = [value.name for value in session.get_inputs()]
        return [
            session.run(self._outputs, {name: batch[name] for name in inputs})
            for batch in self._batches
        ]


def relative_error(actual: Sequence[Sequence[Array]], expected: Sequence[Sequence[Array]]) -> float:
    """The mean squared difference of outputs, relative to the variance of the expected ones.

    Args:
        actual: For each batch the outputs.
        expected: For each batch the outputs that are right.

    Returns:
        The largest error of an output; infinity if a number is not finite where it should be.
        Outputs that are not floating-point numbers don't count.
    """
    worst = 0.0
    for i in range(len(expected[0]) if expected else 0):
        ours = np.concatenate([np.ravel(batch[i]) for batch in actual]).astype(np.float64)
        theirs = np.concatenate([np.ravel(batch[i]) for batch in expected])
        if theirs.dtype.kind != "f":
            continue
        theirs = theirs.astype(np.float64)
        finite = np.isfinite(theirs)
        ours, theirs = ours[finite], theirs[finite]
        if not np.isfinite(ours).all():
            return float("inf")
        if theirs.size:
            scale = float(theirs.var()) or float(np.square(theirs).mean()) or 1.0
            worst = max(worst, float(np.square(ours - theirs).mean()) / scale)
    return worst
