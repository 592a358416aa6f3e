"""Operators that the exporter does not know, or gets wrong, by operators that it knows.

Each file has one family and a table of its own, from torch's operator to a function of the same
arguments. They are traced with the rest of a branch before it is converted, so that a size that
depends on the batch is symbolic in them. None of them has a maximum's place by itself: the places
that a file has are matched with the model's own (`choices.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fxelastic.backends.onnxruntime.decompositions import (
    cumulative,
    distances,
    elementwise,
    order,
    pooling,
    scatter,
    spectral,
)

#: By operator, what takes its place.
DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    **cumulative.DECOMPOSITIONS,
    **distances.DECOMPOSITIONS,
    **elementwise.DECOMPOSITIONS,
    **order.DECOMPOSITIONS,
    **pooling.DECOMPOSITIONS,
    **scatter.DECOMPOSITIONS,
    **spectral.DECOMPOSITIONS,
}
