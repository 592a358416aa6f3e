"""Replace operators that the exporter does not know, or gets wrong, by operators that it knows.

Each file has one family and a table of its own, from torch's operator to a function of the same
arguments. These functions are traced with the rest of a branch before it is converted, so that
sizes that depend on the batch are symbolic in them. Which of several equal elements a file takes is
compared with the model elsewhere (`choices.py`).
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

#: The function that replaces each operator.
DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    **cumulative.DECOMPOSITIONS,
    **distances.DECOMPOSITIONS,
    **elementwise.DECOMPOSITIONS,
    **order.DECOMPOSITIONS,
    **pooling.DECOMPOSITIONS,
    **scatter.DECOMPOSITIONS,
    **spectral.DECOMPOSITIONS,
}
