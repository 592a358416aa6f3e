"""By how much branches change the features that they stand in for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fxelastic.edge.execution import Array, State
from fxelastic.edge.searching.data import Dataset
from fxelastic.errors import BundleError
from fxelastic.spec import SearchSpace

_SAMPLES = 50
#: Numbers of all branches' features that are looked at for one batch; 16 MiB of them.
_NUMBERS = 2**22


class Runner(Protocol):
    """What runs branches: an `Executor`."""

    @property
    def bundle(self) -> Any:
        """Whose `space` the branches are of."""

    def start(self, inputs: Mapping[str, Array]) -> State:
        """The values before the first block."""

    def advance(self, branch: str, state: State) -> State:
        """The values after a branch."""


@dataclass(frozen=True)
class Distortion:
    """How far each new branch's output is from the original's on the same input.

    Each branch is run by itself, on the features that the original computes. So no subnet is
    needed to know which branches stand in well, and which of them err alike: in a residual network
    the errors of several branches add up, and a subnet loses accuracy with their sum.

    Attributes:
        branches: The new branches' ids, in the order of the space.
        errors: For each the mean square of the difference, relative to the features' variance.
        products: For each two the mean product of their differences, in the same units, where
            their outputs have the same shapes; 0 elsewhere. The errors are its diagonal.
        groups: For each a number, the same for outputs of the same shapes.
    """

    branches: tuple[str, ...]
    errors: NDArray[np.float64]
    products: NDArray[np.float64]
    groups: NDArray[np.int64]


def measure(
    runner: Runner, data: Dataset, batch_size: int, n_samples: int = _SAMPLES
) -> Distortion:
    """Run every branch on the original's features.

    Takes about as long as all branches together on these samples. The features of one batch are in
    memory at a time, of as many blocks as the longest branch has.

    Args:
        runner: Runs branches.
        data: The samples; the first ones are taken.
        batch_size: Samples of a batch.
        n_samples: How many to look at; batches are not divided.

    Raises:
        BundleError: A branch can't be run, or gives values that are not finite where the original's
            are.
    """
    space: SearchSpace = runner.bundle.space
    new = [spec.id for spec in space.branches if spec.kind != "original"]
    place = {branch: i for i, branch in enumerate(new)}
    products = np.zeros((len(new), len(new)))
    shapes: dict[str, tuple[Any, ...]] = {}
    seen = 0
    for inputs, targets in data.batches(batch_size):
        if seen >= n_samples:
            break
        seen += len(targets)
        budget = max(1, _NUMBERS // max(1, len(new) * len(targets)))
        rows: dict[tuple[Any, ...], tuple[list[int], list[Array]]] = {}
        for branch, shape, row in _differences(runner, space, inputs, budget):
            shapes[branch] = shape
            index, found = rows.setdefault(shape, ([], []))
            index.append(place[branch])
            found.append(row)
        for index, found in rows.values():
            matrix = np.stack(found)
            products[np.ix_(index, index)] += len(targets) * (matrix @ matrix.T) / matrix.shape[1]
    products /= max(1, seen)
    numbers = {shape: i for i, shape in enumerate(dict.fromkeys(shapes[b] for b in new))}
    groups = np.array([numbers[shapes[branch]] for branch in new], np.int64)
    return Distortion(tuple(new), np.diagonal(products).copy(), products, groups)


def _differences(
    runner: Runner, space: SearchSpace, inputs: Mapping[str, Array], budget: int
) -> Iterator[tuple[str, tuple[Any, ...], Array]]:
    """Each new branch, the shapes of its outputs, and its scaled differences at some places."""
    states = {0: runner.start(inputs)}
    original = space.original.branches
    for position in range(space.n_blocks):
        for spec in space.starting_at[position]:
            if spec.kind == "original":
                continue
            for i in range(position, spec.stop):
                if i + 1 not in states:
                    states[i + 1] = runner.advance(original[i], states[i])
            before, wanted = states[position], states[spec.stop]
            given = runner.advance(spec.id, before)
            names = [n for n in given if n in wanted and wanted[n] is not before.get(n)]
            yield spec.id, *_difference(spec.id, given, wanted, names, budget)
        if position + 1 not in states:
            states[position + 1] = runner.advance(original[position], states[position])
        del states[position]


def _difference(
    branch: str, given: State, wanted: State, names: Sequence[str], budget: int
) -> tuple[tuple[Any, ...], Array]:
    shapes, parts = [], [np.zeros(1, np.float32)]
    for name in sorted(names):
        ours, theirs = _numbers(given[name]), _numbers(wanted[name])
        if theirs.dtype.kind != "f" or ours.shape != theirs.shape:
            continue
        shapes.append(theirs.shape[1:])
        ours, theirs = (a.reshape(len(a) if a.ndim else 1, -1) for a in (ours, theirs))
        if theirs.shape[1] > budget:
            # The same places for all branches: what they have in common is to be seen.
            places = np.random.default_rng(0).choice(theirs.shape[1], budget, replace=False)
            ours, theirs = ours[:, places], theirs[:, places]
        finite = np.isfinite(theirs)
        if not np.isfinite(ours[finite]).all():
            raise BundleError(
                f"branch {branch!r} gives NaN or infinity",
                expected="finite values, as the original gives for the same samples",
                got="values that are not finite",
                fix="train or calibrate the supernet again, and export it",
            )
        scale = float(theirs[finite].std()) or float(np.abs(theirs[finite]).mean()) or 1.0
        difference = np.where(finite, ours - theirs, 0.0).astype(np.float32)
        parts.append(difference.ravel() / np.float32(scale))
    if not shapes:
        return (), parts[0]
    return tuple(shapes), np.concatenate(parts[1:])


def _numbers(value: Any) -> Array:
    array: Array = value if isinstance(value, np.ndarray) else value.numpy()
    return array
