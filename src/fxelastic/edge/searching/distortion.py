"""By how much branches change the features that they stand in for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fxelastic.edge.execution import Array, State
from fxelastic.edge.searching.data import Dataset
from fxelastic.errors import BundleError
from fxelastic.spec import SearchSpace

#: Of each output of a branch: its rows for a sample, and its other sizes.
Shapes: TypeAlias = tuple[tuple[Fraction | int, ...], ...]

_SAMPLES = 50
_BATCHES = 10  # at most: sessions that do not fit into memory together are opened for each
#: Numbers of all branches' features that are looked at for one batch; 16 MiB of them. With a
#: quarter of them the search needed 138 subnets for what takes it 106 with all (eight seeds).
_NUMBERS = 2**22
#: Times the median, beyond which a number is a fill of a mask, and tells nothing of the others.
_FAR = 1e6
_STILL = 1e-4  # spread, as a share of the size, below which features are constant but for rounding
_OFF = 1e9  # in spreads, the most that a value is off: its square is a float32
_TYPICAL = 0.1  # the error of branches where none is known


class Runner(Protocol):
    """What runs branches: an `Executor`."""

    @property
    def bundle(self) -> Any:
        """Whose `space` the branches are of."""

    def start(self, inputs: Mapping[str, Array]) -> State:
        """The values before the first block."""

    def advance(self, branch: str, state: State) -> State:
        """The values after a branch."""

    def make_room(self, n_bytes: int) -> None:
        """Let go of what is not needed now, where the process may not grow by so much."""


@dataclass(frozen=True)
class Distortion:
    """How far each new branch's output is from the original's on the same input.

    Each branch is run by itself, on the features that the original computes. So no subnet is
    needed to know which branches stand in well, and which of them err alike: in a residual network
    the errors of several branches add up, and a subnet loses accuracy with their sum.

    Floating-point outputs are compared, where they have the original's shape. Of a branch that has
    none, or that there was no time for, nothing is known: it has the others' median error.

    Attributes:
        branches: The new branches' ids, in the order of the space.
        errors: For each the mean square of the difference, relative to the variance of the
            original's values, in each output and batch.
        products: For each two the mean product of their differences, in the same units, where
            their outputs have the same shapes for a sample; 0 elsewhere. Its diagonal: the errors.
        groups: For each a number, the same for outputs of the same shapes.
        unknown: For each whether nothing is known.
    """

    branches: tuple[str, ...]
    errors: NDArray[np.float64]
    products: NDArray[np.float64]
    groups: NDArray[np.int64]
    unknown: NDArray[np.bool_]


def measure(
    runner: Runner,
    data: Dataset,
    batch_size: int,
    n_samples: int = _SAMPLES,
    stop: Callable[[], bool] = lambda: False,
    first: int | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> Distortion:
    """Run every branch on the original's features.

    Takes about as long as all branches together on these samples. In memory are the features of one
    batch, of as many blocks as the longest branch has, and some numbers of each branch's.

    Args:
        runner: Runs branches.
        data: The samples; the first ones are taken.
        batch_size: Samples of a batch.
        n_samples: How many to look at; batches are not divided, and there are ten at most.
        stop: Asked before each branch whether to end with what is known.
        first: Samples of the first batch, as in `Dataset.batches`: a branch's error on one sample
            is near its error on many.
        enough: Asked before each batch but the first whether to end with what is known.

    Raises:
        BundleError: A branch can't be run, or gives values that are not finite where the original's
            are.
    """
    space: SearchSpace = runner.bundle.space
    new = [spec.id for spec in space.branches if spec.kind != "original"]
    place = {branch: i for i, branch in enumerate(new)}
    products = np.zeros((len(new), len(new)))
    weights = np.zeros((len(new), len(new)))
    shapes: dict[str, Shapes] = {}
    seen = n_batches = 0
    for inputs, targets in data.batches(batch_size, first=first):
        if seen >= n_samples or n_batches >= _BATCHES or stop() or (n_batches and enough()):
            break
        seen, n_batches = seen + len(targets), n_batches + 1
        rows: dict[tuple[Shapes, int], tuple[list[int], list[Array]]] = {}
        n_run = 0
        budget = max(1, _NUMBERS // max(1, len(new)))
        for branch, shape, row in _differences(runner, space, inputs, budget, len(targets), stop):
            n_run += 1
            if not row.size:
                continue
            # Shapes of the first batch: a smaller last one may divide otherwise.
            key = shapes.setdefault(branch, shape)
            index, found = rows.setdefault((key, row.size), ([], []))
            index.append(place[branch])
            found.append(row)
        if n_run < len(new) and n_batches > 1:
            # It was stopped: products of other samples for some branches than for others would be
            # of no vectors at all.
            break
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
    """The rows as a matrix; each goes as soon as it is there, so that not all are there twice."""
    matrix = np.empty((len(rows), rows[0].size), rows[0].dtype)
    for line in reversed(matrix):
        line[:] = rows.pop()
    return matrix


def _differences(
    runner: Runner,
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
    """At some places, the difference over the spread of the original's values."""
    if not np.isfinite(ours).all() and not np.isfinite(ours[np.isfinite(theirs)]).all():
        raise BundleError(
            f"branch {branch!r} gives NaN or infinity",
            expected="finite values, as the original gives for the same samples",
            got="values that are not finite",
            fix="train or calibrate the supernet again, and export it",
        )
    if theirs.size > budget:
        # The same places for all branches: what they have in common is to be seen.
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
    """A floating-point value as an array; None for others, and for what NumPy has no type of."""
    if not isinstance(value, np.ndarray):
        try:
            value = value.numpy()
        except RuntimeError:  # bfloat16
            return None
    return value if value.dtype.kind == "f" else None
