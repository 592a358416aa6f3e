"""Synthetic inputs, for timing: only their shapes matter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import Array, Executor
from fxelastic.errors import BundleError
from fxelastic.spec.value_info import ValueInfo

#: Ways to choose integers and truth values, in the order in which they are tried: drawn from the
#: range that the export recorded, all at its highest or all at its lowest end, or all 0.
#: Floating-point numbers are normal, and 0 in the last way, since they may be indices.
CHOICES = ("drawn", "highest", "lowest", "zero")


def synthetic(
    info: ValueInfo, shape: Sequence[int], random: np.random.Generator, choice: str = CHOICES[0]
) -> Array:
    """A synthetic array for a value.

    Args:
        info: The value. If the range of its integers is not known, the integers are 1 instead of
            drawn.
        shape: Its sizes.
        random: Draws floating-point numbers, and integers.
        choice: One of `CHOICES`.
    """
    if info.dtype.startswith("float"):
        if choice == "zero":
            return np.zeros(shape, info.dtype)
        return np.asarray(random.standard_normal(shape).astype(info.dtype))
    low, high = info.range or (0, 1)
    if choice == "drawn" and info.range is not None:
        dtype: Any = np.dtype(info.dtype)
        return np.asarray(random.integers(low, high, shape, dtype=dtype, endpoint=True))
    return np.full(shape, {"lowest": low, "zero": 0}.get(choice, high)).astype(info.dtype)


def random_inputs(
    bundle: Bundle,
    batch_size: int,
    seed: int = 0,
    choice: str = CHOICES[0],
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """Synthetic inputs of a model.

    Args:
        bundle: The bundle.
        batch_size: Samples.
        seed: Seed of the random numbers.
        choice: How values are chosen, one of `CHOICES`.
        sizes: Values of other sizes that may vary; the example's for those without an entry.

    Raises:
        UsageError: A shape does not follow from the sizes, or a size is out of range.
    """
    random = np.random.default_rng(seed)
    all_sizes = bundle.manifest.model.sizes_at(batch_size, sizes)
    return {
        info.name: synthetic(info, info.shape_at(all_sizes), random, choice)
        for info in bundle.inputs
    }


def sound_inputs(
    executor: Executor,
    batch_size: int,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> tuple[dict[str, Array], bool]:
    """Inputs for which the original returns finite values, and whether there are any.

    Integers are drawn from the example's range first. A drawn mask may mask everything and lead to
    NaN, so the highest values come next. In a batch smaller than the example's, indices of samples
    may be out of range, so the lowest values come next; zeros, which are valid indices, last, also
    for floating-point inputs, which may hold indices.

    Raises:
        UsageError: A size does not follow from the batch size.
        BundleError: The original can't be run on any of them.
    """
    bundle = executor.bundle
    runs: dict[str, Array] | None = None
    error: BundleError | None = None
    for inputs in _different(bundle, batch_size, seed, sizes):
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


def _different(
    bundle: Bundle, batch_size: int, seed: int, sizes: Mapping[str, int] | None
) -> Iterator[dict[str, Array]]:
    """The inputs of each choice, without repetitions."""
    seen: list[dict[str, Array]] = []
    for choice in CHOICES:
        inputs = random_inputs(bundle, batch_size, seed, choice, sizes)
        if not any(all(np.array_equal(a[n], inputs[n]) for n in inputs) for a in seen):
            seen.append(inputs)
            yield inputs
