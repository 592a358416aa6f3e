"""The ranges of values on calibration data."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector

from fxelastic.backends.onnxruntime.running import open_session
from fxelastic.spec.quantised import Scale

Array: TypeAlias = NDArray[Any]
Range: TypeAlias = tuple[float, float]

_BINS, _QUANTISED_BINS, _PERCENTILE = 1024, 128, 99.99
# Bins are added where later values are larger; cutting takes the square of their number.
_MOST_BINS = 2048
_TINY = 1e-12


class Ranges:
    """Collects the ranges of values over batches."""

    def __init__(self, method: str) -> None:
        """Begin without a value; ``method`` is one of `fxelastic.spec.quantised.RANGES`."""
        self._method = method
        self._found: dict[str, Range] = {}
        self._histograms = HistogramCollector(
            method, False, _BINS, _QUANTISED_BINS, _PERCENTILE, "same"
        )

    def add(self, values: Mapping[str, Array]) -> None:
        """Add the values of a batch, by name, but not empty ones or those with infinity or NaN."""
        usable = {k: v for k, v in values.items() if v.size and bool(np.isfinite(v).all())}
        for name, value in usable.items():
            low, high = self._found.get(name, (0.0, 0.0))
            self._found[name] = min(low, float(value.min())), max(high, float(value.max()))
        if self._method != "minmax":
            known = self._histograms.histogram_dict
            for name in usable.keys() & known.keys():
                known[name] = _coarsened(known[name], float(np.abs(usable[name]).max()))
            with contextlib.redirect_stdout(io.StringIO()):
                self._histograms.collect({k: [v] for k, v in usable.items()})

    def result(self) -> dict[str, Range]:
        """The lowest and the highest number of each value; zero is always between them."""
        found = dict(self._found)
        if self._method != "minmax" and found:
            # Values that are constant have no histogram to cut.
            with contextlib.redirect_stdout(io.StringIO()):
                cut = self._histograms.compute_collection_result()
            for name, (lowest, highest, *_) in cut.items():
                low, high = float(lowest), float(highest)
                widest = found[name]
                low, high = max(min(low, 0.0), widest[0]), min(max(high, 0.0), widest[1])
                found[name] = (low, high) if low < high else widest
        return found


def _coarsened(entry: tuple[Any, ...], largest: float) -> tuple[Any, ...]:
    """A histogram with wider bins, if too many would be needed for a value of this size.

    Args:
        entry: Counts, edges, lowest and highest value, and the end of the range, which begins at
            its negative.
        largest: The largest absolute value to be added.
    """
    counts, edges, low, high, reach = entry
    if not 0 < reach < largest:
        return entry
    wide = float(reach)
    while wide < largest and len(counts) * largest / wide > _MOST_BINS:
        if len(counts) == 2:
            wide *= 2
            continue
        if len(counts) % 4:
            wide *= 1 + 2 / len(counts)
            counts = np.pad(counts, 1)
        counts = counts.reshape(-1, 2).sum(1)
    if counts is entry[0]:
        return entry
    reach = np.asarray(wide, edges.dtype)
    return counts, np.linspace(-wide, wide, len(counts) + 1), low, high, reach


def ranges_inside(
    model: onnx.ModelProto, batches: Iterable[Mapping[str, Array]], method: str
) -> dict[str, Range]:
    """The ranges of all float32 values that a model reads and computes.

    Args:
        model: The model, with the types of its values.
        batches: Its inputs by name.
        method: One of `fxelastic.spec.quantised.RANGES`.
    """
    graph = model.graph
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)
    }
    computed = [name for node in graph.node for name in node.output]
    names = [name for name in computed if kinds.get(name) == onnx.TensorProto.FLOAT]
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    known = {value.name for value in graph.output}
    for name in names:
        if name not in known:
            open_model.graph.output.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            )
    session = open_session(open_model.SerializeToString())
    inputs = [value.name for value in session.get_inputs()]
    ranges = Ranges(method)
    for batch in batches:
        feeds = {name: batch[name] for name in inputs}
        given = {k: v for k, v in feeds.items() if v.dtype == np.float32}
        ranges.add({**given, **dict(zip(names, session.run(names, feeds), strict=True))})
    return ranges.result()


def scale_of(found: Range) -> Scale:
    """The 8-bit form that spans a range."""
    low, high = min(found[0], 0.0), max(found[1], 0.0)
    step = np.float32(max((high - low) / 255, _TINY))
    return Scale(float(step), int(np.clip(round(-low / float(step)), 0, 255)))
