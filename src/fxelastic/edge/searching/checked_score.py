"""The score of a subnet on a batch, and what is said where it can't be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fxelastic.edge.executor import Array
from fxelastic.edge.searching.scores import Metric
from fxelastic.errors import BundleError, FxElasticError, UsageError
from fxelastic.spec import Arch


def nan_of(arch: Arch, inputs: Mapping[str, Array]) -> FxElasticError:
    """The error for NaN in a subnet's results."""
    names = [name for name, array in inputs.items() if not has_no_nan(np.asarray(array))]
    if names:
        return UsageError(
            f"a sample holds NaN in {names[0]}",
            expected="numbers in all inputs",
            got="NaN",
            fix="leave this sample out",
        )
    return BundleError(
        f"the subnet {arch} returns NaN",
        expected="numbers in its outputs",
        got="NaN",
        fix="train or calibrate the supernet again, and export it",
    )


def score_of(
    metric: Metric, outputs: Sequence[Array], targets: Array, arch: Arch
) -> tuple[Any, Any]:
    """The sum and the count of a subnet's score; it may be the user's function."""
    try:
        found: Any = metric.score(outputs, targets)
    except FxElasticError:
        raise
    except Exception as e:
        raise UsageError(
            f"the score {metric.name} failed",
            expected="a function of (outputs, targets) that returns a sum and a count",
            got=f"{type(e).__name__}: {e}",
        ) from e
    parts = found if isinstance(found, (tuple, list)) else ()
    if len(parts) != 2 or any(np.asarray(part).dtype.kind not in "biuf" for part in parts):
        raise UsageError(
            f"the score {metric.name} must return a sum and a count",
            expected="two numbers, as in: return float(right.sum()), len(targets)",
            got=repr(found),
        )
    if not np.isfinite(parts[0]).all():
        raise BundleError(
            f"the score {metric.name} of the subnet {arch} is not finite",
            expected="a finite sum, from outputs without NaN",
            got=repr(parts[0]),
            fix="check the targets for NaN, and the score",
        )
    return parts[0], parts[1]


def has_no_nan(array: Array) -> bool:
    """Whether an array of any type holds no NaN."""
    return array.dtype.kind not in "fc" or not np.isnan(array).any()
