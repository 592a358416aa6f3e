"""The device's own data: the model's inputs for each sample, and targets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import Array, check_inputs
from fxelastic.edge.npz_files import names_in_npz, read_npz
from fxelastic.edge.searching.columns import TARGETS, Column, Ragged, SampleShapes, columns_of
from fxelastic.edge.searching.sample_sizes import checked_sizes, groups_of
from fxelastic.errors import UsageError

_INPUT = "x"

#: The arrays of samples of equal sizes by input, and their targets.
Batch: TypeAlias = tuple[dict[str, Array], Array]


@dataclass(frozen=True)
class Stretch:
    """Some samples in the order of evaluation, which are scored before the next ones.

    Attributes:
        data: The data set.
        numbers: The samples' indices.
    """

    data: Dataset
    numbers: Array

    def __len__(self) -> int:
        return len(self.numbers)

    def parts(self) -> Iterator[tuple[Batch, Array]]:
        """A batch for the samples of each size, with their places in the stretch."""
        groups = self.data.groups
        own = np.zeros(len(self), np.int64) if groups is None else groups[self.numbers]
        for group in np.unique(own):
            places = np.flatnonzero(own == group)
            yield self.data.batch(self.numbers[places]), places


@dataclass(frozen=True)
class Dataset:
    """Samples with their targets.

    Attributes:
        inputs: A column for each of the model's inputs that hold samples, by name, with the
            samples in dimension 0.
        targets: A column. Without targets it holds the samples' numbers, and the original's own
            results are the targets.
        shared: An array for each of the other inputs, by name, which every batch gets whole; or a
            column if its sizes differ from sample to sample.
        labelled: Whether there are targets.
        sample_sizes: The sizes of each sample by symbol, ``(N,)``.
        dims: The dimension in which the model takes the samples, by input; 0 for others.
    """

    inputs: Mapping[str, Column]
    targets: Column
    shared: Mapping[str, Column] = field(default_factory=dict)
    labelled: bool = True
    sample_sizes: Mapping[str, Array] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    def sizes(self) -> list[dict[str, int]]:
        """The sizes of each sample by symbol, such as ``{"seq": 83}``; without the batch size."""
        columns = {name: found.tolist() for name, found in self.sample_sizes.items()}
        return [{name: found[i] for name, found in columns.items()} for i in range(len(self))]

    @cached_property
    def groups(self) -> Array | None:
        """A number for each sample, equal for samples of equal sizes; None if all are equal."""
        return groups_of([*self.inputs.values(), self.targets], list(self.shared.values()))

    def batch(self, numbers: Array) -> Batch:
        """The samples of these indices, which must have equal sizes."""
        inputs = {
            name: np.moveaxis(_stacked(column, numbers), 0, self.dims.get(name, 0))
            for name, column in self.inputs.items()
        }
        shared = {
            name: column.items[numbers[0]] if isinstance(column, Ragged) else column
            for name, column in self.shared.items()
        }
        return {**inputs, **shared}, _stacked(self.targets, numbers)

    def batches(self, size: int, first: int | None = None) -> Iterator[Batch]:
        """Batches of samples of equal sizes; see `stretches`."""
        for stretch in self.stretches(size, first=first):
            for batch, _ in stretch.parts():
                yield batch

    def stretches(
        self, size: int, order: Array | None = None, first: int | None = None
    ) -> Iterator[Stretch]:
        """All samples, some at a time; the last stretch may be shorter.

        Args:
            size: Samples of a stretch.
            order: The samples' indices in the order of evaluation; None for the data's own.
            first: Samples of the first stretch; each later one has twice as many as the one
                before, up to ``size``. None for stretches of one size.
        """
        numbers = np.arange(len(self)) if order is None else order
        stop, n = 0, first or size
        while stop < len(self):
            start, stop, n = stop, stop + min(n, size), 2 * n
            yield Stretch(self, numbers[start:stop])

    def split(self, share: float, seed: int) -> tuple[Dataset, Dataset]:
        """Two parts, each in random order: the rest, and ``share`` of the samples."""
        order = np.random.default_rng(seed).permutation(len(self))
        n_held = round(share * len(self))
        return self._take(order[n_held:]), self._take(order[:n_held])

    def whole(self, size: int) -> Dataset:
        """As many of the first samples of each size as fill batches."""
        if self.groups is None or size == 1:
            return self.head(len(self) // size * size)
        members = [np.flatnonzero(self.groups == group) for group in np.unique(self.groups)]
        kept = [found[: len(found) // size * size] for found in members]
        return self._take(np.sort(np.concatenate([*kept, np.zeros(0, np.int64)])))

    def by_size(self, n: int, seed: int = 0) -> Dataset:
        """The samples in another order, in which stretches of n hold few sizes.

        Samples are sorted by size and cut into stretches, which are in random order.
        """
        if self.groups is None:
            return self
        order = np.argsort(self.groups, kind="stable")
        cut = len(self) // n * n
        stretches = order[:cut].reshape(-1, n)
        shuffled = np.random.default_rng(seed).permutation(stretches)
        return self._take(np.concatenate([shuffled.reshape(-1), order[cut:]]))

    def head(self, n: int) -> Dataset:
        """The first n samples."""
        return self._take(np.arange(n))

    def digest(self, score: str = "") -> str:
        """Sha256 of the samples and the name of a score."""
        digest = hashlib.sha256(score.encode() + (b"" if self.labelled else b" without targets"))
        columns = {**self.inputs, **self.shared}
        for name, column in (*sorted(columns.items()), ("", self.targets)):
            if isinstance(column, Ragged):
                digest.update(f"{name} {len(column)} arrays\n".encode())
            for array in column.items if isinstance(column, Ragged) else (column,):
                digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _take(self, index: Array) -> Dataset:
        return replace(
            self,
            inputs={name: column[index] for name, column in self.inputs.items()},
            targets=self.targets[index],
            shared={
                name: column[index] if isinstance(column, Ragged) else column
                for name, column in self.shared.items()
            },
            sample_sizes={name: found[index] for name, found in self.sample_sizes.items()},
        )


def _stacked(column: Column, numbers: Array) -> Array:
    """The samples of these indices as one array."""
    if isinstance(column, Ragged):
        return np.stack([column.items[i] for i in numbers])
    # A slice needs no copy.
    if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1 and _rises(numbers):
        return column[int(numbers[0]) : int(numbers[-1]) + 1]
    return np.asarray(column[numbers])


def _rises(numbers: Array) -> bool:
    return bool((np.diff(numbers) == 1).all())


def batch_of(bundle: Bundle, wanted: int) -> int:
    """Samples of a batch: ``wanted``, unless the model has a fixed batch size."""
    model = bundle.manifest.model
    return wanted if model.dynamic_batch else model.batch_size


def has_targets(bundle: Bundle, data: Any) -> bool:
    """Whether data has targets, in any of the forms that `read_data` takes.

    Only the names of the arrays are read from a file.

    Raises:
        UsageError: The file can't be read.
    """
    if isinstance(data, (str, os.PathLike)):
        data = dict.fromkeys(names_in_npz(Path(data)))
    if not isinstance(data, Mapping):
        return isinstance(data, tuple) and len(data) == 2
    inputs = [info.name for info in bundle.inputs]
    return any(key in data and key not in inputs for key in TARGETS)


def read_data(bundle: Bundle, data: Any) -> Dataset:
    """Read data in any of the forms that a search takes.

    Args:
        bundle: The bundle, whose inputs the data is for.
        data: A pair ``(x, targets)`` for a model of one input; a dict of arrays, the targets under
            ``targets`` or ``y``; or the path of an ``.npz`` file with such arrays. For a model of
            one input, ``x`` stands for it. An array holds samples in the dimension in which the
            model takes them; an input that holds no samples is one array for all. Targets hold
            samples where the first result does, or in dimension 0 if they have fewer dimensions.
            They may be left out; an array by itself is the model's only input.
            Samples of different sizes are a list of an array for each sample, in place of an
            array; or an array of padded samples with their ``lengths``, or of joined samples with
            their ``offsets``, see `columns_of`.

    Raises:
        UsageError: The data has another form, is empty, or does not fit the model.
    """
    names = [info.name for info in bundle.inputs]
    expected = f"(x, targets), a dict with {', '.join(names)} and targets, or an .npz file of it; "
    expected += "targets may be left out"
    if isinstance(data, (str, os.PathLike)):
        data = read_npz(Path(data))
    if isinstance(data, tuple) and len(data) == 2 and len(names) == 1:
        data = {names[0]: data[0], next(k for k in TARGETS if k not in names): data[1]}
    elif len(names) == 1 and (hasattr(data, "__array__") or isinstance(data, list)):
        data = {names[0]: data}
    if not isinstance(data, Mapping):
        raise UsageError("the data has an unknown form", expected=expected, got=type(data).__name__)
    if len(names) == 1 and names[0] not in data and _INPUT in data:
        data = {renamed(str(key), names[0]): value for key, value in data.items()}
    columns = columns_of(SampleShapes.of(bundle), data)
    key = next((k for k in TARGETS if k in columns and k not in names), None)
    missing = [name for name in names if name not in columns]
    if missing:
        raise UsageError(
            f"the data lacks {missing[0]}",
            expected=expected,
            got=", ".join(columns) or "no arrays",
            fix="name each array after its input",
        )
    batched = bundle.manifest.sample_inputs
    inputs = {name: columns[name] for name in names if name in batched}
    whole = {name: columns[name] for name in names if name not in batched}
    other = [name for name in columns if name not in names]
    if key is None and other:
        # Targets by another name would be ignored silently.
        raise UsageError(
            f"the data has {other[0]}, which is neither an input nor targets",
            expected=expected,
            got=", ".join(columns),
            fix="name the targets 'targets', and leave out arrays that the model does not read",
        )
    given = {} if key is None else {key: columns[key]}
    each = {name: column for name, column in whole.items() if isinstance(column, Ragged)}
    lengths = {
        name: len(column) if isinstance(column, Ragged) or column.ndim else 0
        for name, column in {**inputs, **given, **each}.items()
    }
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise UsageError(
            "the arrays of the data must have samples, and the same number of them",
            expected="arrays of equal length above 0",
            got=", ".join(f"{k}: {n}" for k, n in lengths.items()),
        )
    n_samples = next(iter(lengths.values()))
    targets = np.arange(n_samples) if key is None else columns[key]
    dims = {name: dim for name in inputs if (dim := bundle.manifest.batch_dims.get(name, 0))}
    found = Dataset(inputs, targets, whole, labelled=key is not None, dims=dims)
    ragged = any(isinstance(column, Ragged) for column in (*inputs.values(), *whole.values()))
    if not ragged:
        check_inputs(bundle, found.batch(np.arange(min(n_samples, batch_of(bundle, 1))))[0])
    groups = np.zeros(n_samples, np.int64) if found.groups is None else found.groups
    sizes = checked_sizes(bundle, inputs, whole, groups)
    return replace(found, sample_sizes=sizes)


def renamed(key: str, name: str) -> str:
    """A key of the data with the input's name in place of ``x``."""
    head, dot, tail = key.partition(".")
    return name + dot + tail if head == _INPUT else key
