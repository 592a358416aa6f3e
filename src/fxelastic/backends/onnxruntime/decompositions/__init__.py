"""Replacements for operators that the exporter does not know or converts wrongly.

Each file has one family of operators and a table from each operator to a function of the same
arguments. The functions are traced with the rest of a branch before the conversion, so sizes that
depend on the batch are symbolic in them. `choices.py` compares which of several equal elements a
file takes.
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
    recurrent,
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
    **recurrent.DECOMPOSITIONS,
    **scatter.DECOMPOSITIONS,
    **spectral.DECOMPOSITIONS,
}
