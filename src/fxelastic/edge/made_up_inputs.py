"""Inputs made up where only their shapes matter: for timing, not for scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.execution import Array, Executor
from fxelastic.errors import BundleError
from fxelastic.spec.value_info import ValueInfo

#: Ways to make up integers and truth values, in the order in which they are tried: drawn from the
#: range that the export saw, all at the highest or all at the lowest end of it, or all 0.
CHOICES = ("drawn", "highest", "lowest", "zero")


def made_up(
    info: ValueInfo, shape: Sequence[int], random: np.random.Generator, choice: str = CHOICES[0]
) -> Array:
    """An array that may stand for a value.

    Args:
        info: The value. Where the range of its integers is not known, it counts as 0 to 1, and
            the integers are 1 instead of drawn.
        shape: Its sizes.
        random: Draws floating-point numbers, which are normal, and integers.
        choice: One of `CHOICES`.
    """
    if info.dtype.startswith("float"):
        return np.asarray(random.standard_normal(shape).astype(info.dtype))
    low, high = info.range or (0, 1)
    if choice == "drawn" and info.range is not None:
        dtype: Any = np.dtype(info.dtype)
        return np.asarray(random.integers(low, high, shape, dtype=dtype, endpoint=True))
    return np.full(shape, {"lowest": low, "zero": 0}.get(choice, high)).astype(info.dtype)


def random_inputs(
    bundle: Bundle, batch_size: int, seed: int = 0, choice: str = CHOICES[0]
) -> dict[str, Array]:
    """Inputs of a model.

    Args:
        bundle: The bundle.
        batch_size: Samples.
        seed: Of what is random.
        choice: How integers and truth values are chosen, one of `CHOICES`.

    Raises:
        UsageError: A size is not known from the batch size.
    """
    random = np.random.default_rng(seed)
    return {
        info.name: made_up(info, info.shape_at(batch_size), random, choice)
        for info in bundle.inputs
    }


def sound_inputs(
    executor: Executor, batch_size: int, seed: int = 0
) -> tuple[dict[str, Array], bool]:
    """Inputs for which the original gives finite values, and whether there are any.

    It draws integers from the example's range first. A mask that is drawn may mask everything and
    give NaN, so the highest values come next. In a batch smaller than the example's, indices of
    samples may be out of range, so the lowest values come then; zeros, which index anything, last.

    Raises:
        UsageError: A size is not known from the batch size.
        BundleError: The original can't be run on any.
    """
    bundle = executor.bundle
    runs: dict[str, Array] | None = None
    error: BundleError | None = None
    for inputs in _different(bundle, batch_size, seed):
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


def _different(bundle: Bundle, batch_size: int, seed: int) -> Iterator[dict[str, Array]]:
    """The inputs of each choice that differ from those before."""
    seen: list[dict[str, Array]] = []
    for choice in CHOICES:
        inputs = random_inputs(bundle, batch_size, seed, choice)
        if not any(all(np.array_equal(a[n], inputs[n]) for n in inputs) for a in seen):
            seen.append(inputs)
            yield inputs
