"""Inputs made up where only their shapes matter: for timing, not for scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.execution import Array, Executor
from fxelastic.errors import BundleError


def made_up(dtype: str, shape: Sequence[int], random: np.random.Generator, whole: int = 1) -> Array:
    """An array: normal for floats; ``whole`` everywhere for integers and truth values."""
    real = dtype.startswith("float")
    array: Any = random.standard_normal(shape) if real else np.full(shape, whole)
    return np.asarray(array.astype(dtype))


def random_inputs(
    bundle: Bundle, batch_size: int, seed: int = 0, whole: int = 1
) -> dict[str, Array]:
    """Inputs of a model.

    Args:
        bundle: The bundle.
        batch_size: Samples.
        seed: Of what is random.
        whole: What integers and truth values are.

    Raises:
        UsageError: A size is not known from the batch size.
    """
    random = np.random.default_rng(seed)
    return {
        info.name: made_up(info.dtype, info.shape_at(batch_size), random, whole)
        for info in bundle.inputs
    }


def sound_inputs(
    executor: Executor, batch_size: int, seed: int = 0
) -> tuple[dict[str, Array], bool]:
    """Inputs for which the original gives finite values, and whether there are any.

    Ones come first: a mask of zeros may leave attention nothing to look at, and give NaN. Zeros
    are an index of everything.

    Raises:
        UsageError: A size is not known from the batch size.
        BundleError: The original can't be run on any.
    """
    bundle = executor.bundle
    runs: dict[str, Array] | None = None
    error: BundleError | None = None
    for whole in (1, 0):
        inputs = random_inputs(bundle, batch_size, seed, whole)
        try:
            results = executor.run(bundle.space.original, inputs)
        except BundleError as e:
            error = error or e
            continue
        if all(np.isfinite(r).all() for r in results if r.dtype.kind == "f"):
            return inputs, True
        runs = runs or inputs
    if runs is None:
        assert error is not None
        raise error
    return runs, False
