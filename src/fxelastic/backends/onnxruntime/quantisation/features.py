"""The values that the model's own blocks compute for calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from fxelastic.backends.onnxruntime.quantisation.ranges import Array, Ranges
from fxelastic.backends.onnxruntime.running import open_session
from fxelastic.spec.value_info import ValueInfo


@dataclass(frozen=True)
class Features:
    """Runs the converted originals on batches, one block after the other.

    Values are held for as long as a block reads them, so that few exist at a time.

    Attributes:
        originals: The converted originals, in the order of the blocks.
        values: The values between blocks, by name.
        batches: The model's inputs by name, for each batch.
    """

    originals: Sequence[onnx.ModelProto]
    values: Mapping[str, ValueInfo]
    batches: Sequence[Mapping[str, Array]]

    def before(self) -> Iterator[list[dict[str, Array]]]:
        """For each block in turn, the values before it, for each batch."""
        states = [dict(batch) for batch in self.batches]
        for block, original in enumerate(self.originals):
            yield states
            self._run(original, states)
            for state in states:
                for name in [name for name in state if self.values[name].last_read <= block]:
                    del state[name]
        yield states

    def ranges(self, method: str) -> Ranges:
        """The ranges of the values between blocks; ``method`` as in `Ranges`."""
        ranges = Ranges(method)
        seen: set[str] = set()
        for states in self.before():
            new = [name for name in (states[0] if states else ()) if name not in seen]
            seen.update(new)
            for state in states:
                ranges.add({n: state[n] for n in new if state[n].dtype == np.float32})
        return ranges

    def _run(self, original: onnx.ModelProto, states: Sequence[dict[str, Array]]) -> None:
        outputs = [value.name for value in original.graph.output]
        if not outputs:
            return
        session = open_session(original.SerializeToString())
        inputs = [value.name for value in session.get_inputs()]
        for state in states:
            found = session.run(outputs, {name: state[name] for name in inputs})
            state.update(zip(outputs, found, strict=True))
