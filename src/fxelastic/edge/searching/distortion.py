"""By how much branches change the features that they replace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fxelastic.edge.executor import Array, Executor
from fxelastic.edge.searching.data import Dataset
from fxelastic.errors import BundleError
from fxelastic.spec import SearchSpace
from fxelastic.spec.quantised import INT8

#: Of each output of a branch: its rows for a sample, and its other sizes.
Shapes: TypeAlias = tuple[tuple[Fraction | int, ...], ...]

_SAMPLES = 50
_BATCHES = 10  # at most: if sessions do not fit into memory together, each batch opens them
#: Numbers of all branches' features that are compared for one batch; 16 MiB. With a quarter of them
#: the search needed 138 subnets instead of 106 for the same result (eight seeds).
_NUMBERS = 2**22
#: Numbers beyond this multiple of the median are fills of masks, and are ignored.
_FAR = 1e6
_STILL = 1e-4  # features of a smaller spread, as a share of their size, are constant
_OFF = 1e9  # the largest difference in spreads: its square is still a float32
_TYPICAL = 0.1  # the error of branches if none is known


@dataclass(frozen=True)
class Distortion:
    """How far each new branch's output is from the original's on the same input.

    Each branch is run by itself, on the features that the original computes. This shows without
    any subnet which branches are good replacements, and which of them have similar errors: in a
    residual network the errors of several branches add up, and a subnet loses accuracy with their
    sum.

    Floating-point outputs of the original's shape are compared. A branch without such an output,
    or one that there was no time for, is unknown, and gets the others' median error; an 8-bit
    branch gets its float branch's error and the error that the bundle has for it.

    Attributes:
        branches: The new branches' ids, in the order of the space.
        errors: For each the mean square of the difference, relative to the variance of the
            original's values, in each output and batch.
        products: For each two the mean product of their differences, in the same units, where
            their outputs have the same shapes for a sample; 0 elsewhere. Its diagonal: the errors.
        groups: For each a number, the same for outputs of the same shapes.
        unknown: For each whether its error is unknown.
    """

    branches: tuple[str, ...]
    errors: NDArray[np.float64]
    products: NDArray[np.float64]
    groups: NDArray[np.int64]
    unknown: NDArray[np.bool_]


def measure(
    runner: Executor,
    data: Dataset,
    batch_size: int,
    n_samples: int = _SAMPLES,
    stop: Callable[[], bool] = lambda: False,
    first: int | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> Distortion:
    """Run every branch on the original's features.

    This takes about as long as all branches together on these samples. It holds the features of one
    batch in memory, of as many blocks as the longest branch has, and some numbers of each branch.

    Args:
        runner: Runs branches.
        data: The samples; the first ones are taken.
        batch_size: Samples that are run together, in a batch for each size.
        n_samples: The number of samples; at most ten times ``batch_size``.
        stop: Called before each branch; returns whether to end with the result so far.
        first: Samples of the first stretch, as in `Dataset.stretches`: a branch's error on one
            sample is near its error on many.
        enough: Called before each batch but the first; returns the same.

    Raises:
        BundleError: A branch can't be run, or returns values that are not finite where the
            original's are.
    """
    space: SearchSpace = runner.bundle.space
    new = [spec.id for spec in space.branches if spec.kind != "original"]
    place = {branch: i for i, branch in enumerate(new)}
    products = np.zeros((len(new), len(new)))
    weights = np.zeros((len(new), len(new)))
    shapes: dict[str, Shapes] = {}
    seen = n_done = 0
    for n_batches, stretch in enumerate(data.stretches(batch_size, first=first)):
        if seen >= n_samples or n_batches >= _BATCHES or stop() or (n_batches and enough()):
            break
        seen += len(stretch)
        for (inputs, targets), _ in stretch.parts():
            rows: dict[tuple[Shapes, int], tuple[list[int], list[Array]]] = {}
            n_run = 0
            budget = max(1, _NUMBERS // max(1, len(new)))
            for branch, shape, row in _differences(
                runner, space, inputs, budget, len(targets), stop
            ):
                n_run += 1
                if not row.size:
                    continue
                # Shapes of the first batch: a smaller last one may divide otherwise.
                key = shapes.setdefault(branch, shape)
                index, found = rows.setdefault((key, row.size), ([], []))
                index.append(place[branch])
                found.append(row)
            if n_run < len(new) and n_done:
                # It was stopped: products of different samples are not products of vectors.
                break
            n_done += 1
            for index, found in rows.values():
                runner.make_room(sum(row.nbytes for row in found))
                matrix = _stacked(found)
                square = np.ix_(index, index)
                mean = (matrix @ matrix.T).astype(np.float64) / matrix.shape[1]
                products[square] += len(targets) * mean
                weights[square] += len(targets)
    products /= np.maximum(weights, 1)
    unknown = np.diagonal(weights) == 0
    typical = float(np.median(np.diagonal(products)[~unknown])) if (~unknown).any() else _TYPICAL
    products[unknown, unknown] = typical
    for branch in new:
        if space.by_id[branch].kind != INT8 or not unknown[place[branch]]:
            continue
        quantised = runner.bundle.segment(branch).quantised
        assert quantised is not None  # as the manifest's checks require
        # The bundle has the error of the 8 bits alone.
        i, source = place[branch], place.get(quantised.source)
        float_error = 0.0 if source is None else products[source, source]
        products[i, i] = float_error + quantised.error
    numbers = {shape: i for i, shape in enumerate(dict.fromkeys(shapes.values()))}
    groups = [numbers.get(shapes.get(branch, ()), len(numbers)) for branch in new]
    return Distortion(
        tuple(new),
        np.diagonal(products).copy(),
        products,
        np.array(groups, np.int64),
        np.asarray(unknown, np.bool_),
    )


def _stacked(rows: list[Array]) -> Array:
    """The rows as a matrix; each is freed when it is copied, so that few exist twice."""
    matrix = np.empty((len(rows), rows[0].size), rows[0].dtype)
    for line in reversed(matrix):
        line[:] = rows.pop()
    return matrix


def _differences(
    runner: Executor,
    space: SearchSpace,
    inputs: Mapping[str, Array],
    budget: int,
    n_samples: int,
    stop: Callable[[], bool],
) -> Iterator[tuple[str, Shapes, Array]]:
    """Each new branch, the shapes of its outputs, and its scaled differences at some places."""
    states = {0: runner.start(inputs)}
    original = space.original.branches
    for position in range(space.n_blocks):
        for spec in space.starting_at[position]:
            if spec.kind == "original":
                continue
            if stop():
                return
            for i in range(position, spec.stop):
                if i + 1 not in states:
                    states[i + 1] = runner.advance(original[i], states[i])
            before, wanted = states[position], states[spec.stop]
            given = runner.advance(spec.id, before)
            shapes, parts = [], []
            for name in sorted(given):
                if name not in wanted or wanted[name] is before.get(name):
                    continue
                ours, theirs = _numbers(given[name]), _numbers(wanted[name])
                if ours is None or theirs is None or ours.shape != theirs.shape:
                    continue
                rows = Fraction(theirs.shape[0] if theirs.ndim else 1, n_samples)
                shapes.append((rows, *theirs.shape[1:]))
                parts.append(_difference(spec.id, ours.ravel(), theirs.ravel(), budget))
            yield spec.id, tuple(shapes), np.concatenate(parts) if parts else np.zeros(0)
        if position + 1 not in states:
            states[position + 1] = runner.advance(original[position], states[position])
        del states[position]


def _difference(branch: str, ours: Array, theirs: Array, budget: int) -> Array:
    """The difference over the spread of the original's values, at some places."""
    if not np.isfinite(ours).all() and not np.isfinite(ours[np.isfinite(theirs)]).all():
        raise BundleError(
            f"branch {branch!r} returns NaN or infinity",
            expected="finite values, as the original returns for the same samples",
            got="values that are not finite",
            fix="train or calibrate the supernet again, and export it",
        )
    if theirs.size > budget:
        # The same places for all branches, so that their differences can be compared.
        places = np.random.default_rng(0).integers(theirs.size, size=budget)
        ours, theirs = ours[places], theirs[places]
    theirs = theirs.astype(np.float64)
    size = np.abs(theirs)
    finite = np.isfinite(size)
    sizes = size[finite & (size > 0)]
    near = finite & (size <= _FAR * (float(np.median(sizes)) if sizes.size else 1.0))
    found = np.zeros(theirs.shape, np.float32)
    if not near.any():
        return found[:0]
    mean_size, spread = float(size[near].mean()), float(theirs[near].std())
    scale = (spread if spread > _STILL * mean_size else mean_size) or 1.0
    found[near] = np.clip((ours[near].astype(np.float64) - theirs[near]) / scale, -_OFF, _OFF)
    return found


def _numbers(value: Any) -> Array | None:
    """A floating-point value as an array; None for other dtypes and for bfloat16."""
    if not isinstance(value, np.ndarray):
        try:
            value = value.numpy()
        except RuntimeError:  # bfloat16
            return None
    return value if value.dtype.kind == "f" else None
