"""Comparison of a file's results with torch's."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

#: The largest allowed difference in one file by dtype, as a share of the largest absolute value of
#: the result. Results of other dtypes must be equal.
TOLERANCES: Mapping[str, float] = {
    "float64": 1e-9,
    "float32": 1e-4,
    "float16": 1e-2,
}

#: The largest allowed difference in whole subnets, where differences add up.
SUBNET_TOLERANCES: Mapping[str, float] = {name: 10 * t for name, t in TOLERANCES.items()}

# Smaller results count as zero, by dtype. Activations of an untrained model may fade to 1e-40, and
# the smallest numbers have few digits.
_FADED: Mapping[str, float] = {"float64": 1e-290, "float32": 1e-30, "float16": 6.2e-5}

# Differences of so many times torch's own rounding error count as rounding, up to a share of the
# result.
_OF_ROUNDING, _MOST_ROUNDING = 8, 0.05

_SETTINGS = threading.Lock()

_NO_SCALES: Mapping[str, float] = {}

#: The least scale of a result by dtype, in files with a sigmoid. onnxruntime's sigmoid has an
#: absolute error of 1.3e-7, even for results of 1e-6. A detector whose classes are all unlikely
#: gives only such results.
SIGMOID_SCALES: Mapping[str, float] = {"float32": 2e-3}


@dataclass(frozen=True)
class Difference:
    """A difference between two results above the tolerance.

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
        actual: The file's result.
        expected: The module's result.
        tolerances: By dtype; 0 for other dtypes.
        scales: The least scale of a result, by dtype.

    Returns:
        The difference, or None if the results agree.
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
        return Difference(name, "infinities or NaN in other elements")
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
        f"the tolerance is {tolerances[dtype]:g}",
    )


def is_rounding(
    actual: Mapping[str, np.ndarray[Any, Any]],
    expected: Mapping[str, torch.Tensor],
    inputs: Mapping[str, Any],
    compute: Callable[[Callable[..., Any]], Mapping[str, torch.Tensor]],
    tolerances: Mapping[str, float],
) -> bool:
    """Whether results differ from torch's by little more than torch's own rounding errors.

    A norm over a single element subtracts a value from itself. Only rounding error remains, and
    no two libraries agree on it. Many layers without a norm amplify rounding errors: those of an
    untrained MENet reach 1% of its result. Such a difference is small beside the inputs or the
    result, and torch's result, with one of its libraries or another, differs as much from that of
    64 bits.

    Args:
        actual: The file's results, by name.
        expected: The modules' results.
        inputs: The inputs by name.
        compute: Returns the modules' results, given a function that runs a module.
        tolerances: By dtype.
    """
    read = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    read = [x for x in read if x.numel()]
    if not read:
        return False
    limit = tolerances["float32"] * max(float(x.abs().max()) for x in read)
    try:
        exact, other = compute(_in_float64), compute(_without_onednn)
    except (RuntimeError, TypeError):
        return False  # a module that needs its own dtype
    for name, found in expected.items():
        if compare(name, actual[name], found, tolerances) is None:
            continue
        truth = exact[name].double()
        if found.dtype != torch.float32 or truth.shape != found.shape:
            return False
        error = float((torch.from_numpy(actual[name]).double() - truth).abs().max())
        own = max(float((x.double() - truth).abs().max()) for x in (found, other[name]))
        most = max(limit, _MOST_ROUNDING * float(truth.abs().max()))
        if not error <= min(most, _OF_ROUNDING * own):
            return False
    return True


def _without_onednn(module: nn.Module, *operands: Any) -> Any:
    """Run a module with torch's own kernels, which round in another order."""
    # Files are compared in several threads, and both settings belong to the process.
    with _SETTINGS, warnings.catch_warnings():
        # Setting the flags warns of those of other devices.
        warnings.simplefilter("ignore", UserWarning)
        with torch.backends.mkldnn.flags(enabled=False):
            return module(*operands)


def _in_float64(module: nn.Module, *operands: Any) -> Any:
    """Run a copy of a module in 64 bits."""
    wide = [
        x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in operands
    ]
    return copy.deepcopy(module).double()(*wide)
