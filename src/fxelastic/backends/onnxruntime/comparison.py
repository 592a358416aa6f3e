"""How close what a file computes is to what torch computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

#: By dtype, the largest difference allowed in one file, as a share of the largest absolute value
#: of the result; dtypes that are not listed have to be equal.
TOLERANCES: Mapping[str, float] = {
    "float64": 1e-9,
    "float32": 1e-4,
    "float16": 1e-2,
}

#: The same for whole subnets, where differences add up.
SUBNET_TOLERANCES: Mapping[str, float] = {name: 10 * t for name, t in TOLERANCES.items()}

# By dtype, what results are taken for zero below. Activations of an untrained model may fade to
# 1e-40; numbers near the smallest have few digits, and so has all that is computed from them.
_FADED: Mapping[str, float] = {"float64": 1e-290, "float32": 1e-30, "float16": 6.2e-5}

_NO_SCALES: Mapping[str, float] = {}

#: By dtype, what the largest value of a result is taken for at least, where a sigmoid is computed:
#: onnxruntime's is right to 1.3e-7, as any value near 1 is, also where it gives 1e-6. A detector
#: whose classes are all unlikely gives nothing but such values.
SIGMOID_SCALES: Mapping[str, float] = {"float32": 2e-3}


@dataclass(frozen=True)
class Difference:
    """Where two results differ by more than is allowed.

    Attributes:
        name: The value.
        problem: How they differ, in one sentence.
    """

    name: str
    problem: str


def compare(
    name: str,
    actual: np.ndarray[Any, Any],
    expected: torch.Tensor,
    tolerances: Mapping[str, float],
    scales: Mapping[str, float] = _NO_SCALES,
) -> Difference | None:
    """Compare one result with torch's.

    Args:
        name: The value's name.
        actual: What the file computes.
        expected: What the module computes.
        tolerances: By dtype; 0 where it is not listed.
        scales: By dtype, what the largest value is taken for at least.

    Returns:
        How they differ, or None.
    """
    dtype = str(expected.dtype).removeprefix("torch.")
    if tuple(actual.shape) != tuple(expected.shape):
        return Difference(name, f"shape {tuple(actual.shape)} against {tuple(expected.shape)}")
    if str(actual.dtype) != dtype:
        return Difference(name, f"dtype {actual.dtype} against {dtype}")
    right = expected.detach().cpu().numpy()
    if dtype not in tolerances:
        n_different = int((~((actual == right) | ((actual != actual) & (right != right)))).sum())
        return Difference(name, f"{n_different} elements differ") if n_different else None
    left, right = actual.astype(np.float64), right.astype(np.float64)
    finite = np.isfinite(left) & np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return Difference(name, "infinities or NaN at other places")
    if not finite.any():
        return None
    error = float(np.abs(left[finite] - right[finite]).max())
    scale = max(float(np.abs(right[finite]).max()), _FADED.get(dtype, 0.0), scales.get(dtype, 0.0))
    if error <= tolerances[dtype] * scale:
        return None
    share = error / scale if scale else float("inf")
    return Difference(
        name,
        f"largest difference {error:.3g}, {share:.3g} of the largest value; "
        f"{tolerances[dtype]:g} is allowed",
    )
