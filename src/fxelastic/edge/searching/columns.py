"""One array for each sample: data whose samples have different sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import Array
from fxelastic.errors import UsageError
from fxelastic.spec.symbols import dimension
from fxelastic.spec.value_info import ValueInfo

#: After the name of an array, or by itself for all arrays: how long each padded sample is.
LENGTHS = "lengths"
#: The same for joined samples: where each begins, and where the last one ends.
OFFSETS = "offsets"

#: Names of the targets in data.
TARGETS = ("targets", "y")


@dataclass(frozen=True)
class Ragged:
    """Samples of different shapes.

    Attributes:
        items: The array of each sample, without a dimension for the samples.
    """

    items: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Array) -> Ragged:
        return Ragged(tuple(self.items[i] for i in index))


#: The values of an input for all samples: one array with the samples in dimension 0 if they have
#: one shape, otherwise an array for each.
Column: TypeAlias = Array | Ragged


@dataclass(frozen=True)
class SampleShapes:
    """The shapes of one sample as a model takes and returns it.

    Attributes:
        sizes: The names of the sizes that vary, without the batch.
        inputs: For each input that holds samples, the sizes of one sample: integers and
            expressions.
        dims: The dimension of the samples in each input, None for an input that holds none.
        results: The sizes of one sample of each result.
        result_dim: The dimension of the samples in the first result.
    """

    sizes: tuple[str, ...] = ()
    inputs: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    dims: Mapping[str, int | None] = field(default_factory=dict)
    results: tuple[tuple[int | str, ...], ...] = ()
    result_dim: int = 0

    @classmethod
    def of(cls, bundle: Bundle) -> SampleShapes:
        """Those of a bundle."""
        manifest = bundle.manifest
        own = [info for info in bundle.inputs if info.name in manifest.sample_inputs]
        dims = {info.name: manifest.batch_dims.get(info.name, 0) for info in own}
        first = next((info.name for info in bundle.outputs), "")
        return cls(
            tuple(symbol.name for symbol in manifest.model.sizes),
            {info.name: dims_of_sample(bundle, info) for info in own},
            {info.name: dims.get(info.name) for info in bundle.inputs},
            tuple(dims_of_sample(bundle, info) for info in bundle.outputs),
            manifest.batch_dims.get(first, 0),
        )


def column_of(value: Any, name: str) -> Column:
    """The samples in an array, or in a list of arrays; nothing is unpickled.

    Raises:
        UsageError: The arrays of a list have different dtypes, or an array holds other objects.
    """
    if isinstance(value, Ragged):
        return value
    if _holds_objects(value):
        value = value.tolist()
    try:
        return np.asarray(value)
    except ValueError:
        if not isinstance(value, (list, tuple)):
            raise
    items = [np.asarray(item) for item in value]
    for i, item in enumerate(items):
        if item.dtype != items[0].dtype:
            raise UsageError(
                f"sample {i} of {name!r} has another dtype than the first",
                expected=f"arrays of {items[0].dtype}",
                got=str(item.dtype),
            )
    return joined(items)


def _holds_objects(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == object and value.ndim > 0


def joined(items: Sequence[Array]) -> Column:
    """The samples as one array if they have one shape."""
    if len({item.shape for item in items}) > 1:
        return Ragged(tuple(items))
    return np.stack(items) if items else np.empty(0)


def columns_of(shapes: SampleShapes, data: Mapping[str, Any]) -> dict[str, Column]:
    """The columns of data by name, with padding cut off and joined samples separated.

    Args:
        shapes: The shapes that the model takes.
        data: Arrays, lists of an array for each sample, or columns, by name. ``NAME.lengths`` has
            the lengths of the padded samples in ``NAME``, ``(N,)``, or ``(N, K)`` if K of its
            dimensions vary; ``lengths`` has the model's sizes for all inputs instead.
            ``NAME.offsets`` or ``offsets``, ``(N + 1,)``, separates samples that are joined in
            dimension 0.

    Raises:
        UsageError: Lengths or offsets do not fit the arrays.
    """
    given = {str(name): value for name, value in data.items()}
    shared = {
        how: np.asarray(given.pop(how))
        for how in (LENGTHS, OFFSETS)
        if how in given and how not in shapes.dims
    }
    own = {
        name: np.asarray(given.pop(name))
        for name in tuple(given)
        if "." in name and name.rpartition(".")[2] in (LENGTHS, OFFSETS)
    }
    for name in own:
        whose = name.rpartition(".")[0]
        if whose not in given:
            raise UsageError(
                f"the data has {name}, but no {whose}",
                expected="lengths or offsets of an array in the data",
                got=", ".join(given) or "no arrays",
            )
    columns = {name: column_of(value, name) for name, value in given.items()}
    for name, value in given.items():
        is_joined = OFFSETS in shared or f"{name}.{OFFSETS}" in own
        if not (is_joined or isinstance(value, (list, tuple, Ragged)) or _holds_objects(value)):
            columns[name] = _by_sample(shapes, name, np.asarray(columns[name]))
    if len(shared) > 1:
        raise UsageError("pass either lengths or offsets", expected="one of them", got="both")
    for name, column in columns.items():
        has_samples = shapes.dims.get(name) is not None
        if has_samples and isinstance(column, np.ndarray) and not column.ndim:
            raise UsageError(
                f"{name!r} is a single value",
                expected="an array whose first size is the number of samples",
                got=repr(column.item()),
            )
    cutter = _Cutter(shapes, columns, shared)
    return {name: cutter.cut(name, column, own) for name, column in columns.items()}


def dims_of_sample(bundle: Bundle, info: ValueInfo) -> tuple[int | str, ...]:
    """The shape of one sample of an input or a result."""
    dim = bundle.manifest.batch_dims.get(info.name, 0)
    return (*info.dims[:dim], *info.dims[dim + 1 :])


def _by_sample(shapes: SampleShapes, name: str, array: Array) -> Array:
    """The values of an input, or targets, with the samples in dimension 0."""
    dim = shapes.dims.get(name, shapes.result_dim)
    return array if dim is None or dim >= array.ndim else np.moveaxis(array, dim, 0)


class _Cutter:
    """Cuts padding off, and joined samples apart."""

    def __init__(
        self, shapes: SampleShapes, columns: Mapping[str, Column], shared: Mapping[str, Array]
    ) -> None:
        self._names = shapes.sizes
        self._dims = shapes.inputs
        self._results = shapes.results
        self._shared = shared
        self._padded = self._padded_sizes(columns)
        self._n_joined = next((len(columns[name]) for name in self._dims if name in columns), 0)

    def cut(self, name: str, column: Column, own: Mapping[str, Array]) -> Column:
        """The samples of a column."""
        offsets, lengths = own.get(f"{name}.{OFFSETS}"), own.get(f"{name}.{LENGTHS}")
        if lengths is not None:
            places = _varying(self._dims.get(name, ())) or [0]
            return _without_padding(name, column, _table(f"{name}.{LENGTHS}", lengths), places)
        if offsets is not None:
            return split(name, column, offsets)
        if not self._shared or isinstance(column, Ragged) or not column.ndim:
            return column
        dims: Sequence[int | str] = self._dims.get(name, ())
        if name not in self._dims and name in TARGETS:
            dims = self._target_dims(column)
        places = _varying(dims)
        if not places:
            return column
        if OFFSETS in self._shared:
            return split(name, column, self._shared[OFFSETS])
        sizes = _table(LENGTHS, self._shared[LENGTHS])
        if sizes.shape[1] != len(self._names):
            raise UsageError(
                "lengths must have one number for each sample and size of the model",
                expected=f"shape (N, {len(self._names)}) for {', '.join(self._names)}",
                got=str(self._shared[LENGTHS].shape),
            )
        return _without_padding(name, column, self._at(sizes, [dims[i] for i in places]), places)

    def _target_dims(self, targets: Array) -> Sequence[int | str]:
        """The dimensions of a sample's target if it varies as a result does; otherwise none."""
        if OFFSETS in self._shared:
            varies = any(map(_varying, self._results)) and len(targets) == self._n_joined
            return ("joined",) if varies else ()
        for dims in self._results:
            # A target has the result's shape, or the shape without the classes.
            classes = next((i for i, dim in enumerate(dims) if isinstance(dim, int)), len(dims))
            for found in (dims, (*dims[:classes], *dims[classes + 1 :])):
                places = _varying(found)
                if places and len(found) == targets.ndim - 1 and self._is_padded(found, targets):
                    return found
        return ()

    def _is_padded(self, dims: Sequence[int | str], targets: Array) -> bool:
        """Whether targets are padded to the size that follows from the padded inputs."""
        try:
            found = [dimension(str(dims[i])).at(self._padded) for i in _varying(dims)]
        except ValueError:
            return False
        return found == [targets.shape[1 + i] for i in _varying(dims)]

    def _padded_sizes(self, columns: Mapping[str, Column]) -> dict[str, int]:
        """The model's sizes in the padded inputs."""
        found: dict[str, int] = {}
        for name, dims in self._dims.items():
            column = columns.get(name)
            if not isinstance(column, np.ndarray) or column.ndim != 1 + len(dims):
                continue
            for i in _varying(dims):
                solved = dimension(str(dims[i])).solve(column.shape[1 + i])
                if solved is not None:
                    found.setdefault(*solved)
        return found

    def _at(self, sizes: Array, dims: Sequence[int | str]) -> Array:
        """The value of dimensions for the sizes of each sample, ``(N, len(dims))``."""
        found = np.empty((len(sizes), len(dims)), np.int64)
        for i, row in enumerate(sizes):
            values = dict(zip(self._names, map(int, row), strict=True))
            try:
                found[i] = [dimension(str(dim)).at(values) for dim in dims]
            except ValueError as e:
                raise UsageError(
                    f"the lengths of sample {i} are not sizes of the model: {e}", got=str(values)
                ) from e
        return found


def _varying(dims: Sequence[int | str]) -> list[int]:
    """The places of the sizes that vary."""
    return [i for i, dim in enumerate(dims) if isinstance(dim, str)]


def _table(name: str, lengths: Array) -> Array:
    """Lengths as integers ``(N, K)``."""
    if lengths.dtype.kind not in "iu" or lengths.ndim not in (1, 2):
        raise UsageError(
            f"{name} must be integers of shape (N,) or (N, K)",
            expected="one length for each sample, or one for each of its dimensions that vary",
            got=f"{lengths.dtype}{list(lengths.shape)}",
        )
    return np.asarray(lengths.reshape(len(lengths), -1))


def _without_padding(name: str, column: Column, lengths: Array, places: Sequence[int]) -> Column:
    """Samples without their padding.

    Args:
        name: The column's name.
        column: The padded samples.
        lengths: For each sample the sizes of the dimensions at ``places``.
        places: Dimensions of a sample.
    """
    padded = isinstance(column, np.ndarray) and column.ndim > 1 + max(places)
    if not padded or lengths.shape != (len(column), len(places)):
        raise UsageError(
            f"the lengths of {name!r} do not fit it",
            expected=f"a padded array, and {len(places)} lengths for each of its samples",
            got=f"lengths of {len(lengths)} samples and {lengths.shape[1]} dimensions; "
            + (f"an array {column.shape}" if isinstance(column, np.ndarray) else "a list"),
        )
    assert isinstance(column, np.ndarray)
    for j, place in enumerate(places):
        wrong = np.flatnonzero((lengths[:, j] < 0) | (lengths[:, j] > column.shape[1 + place]))
        if len(wrong):
            i = int(wrong[0])
            raise UsageError(
                f"the length of sample {i} in dimension {1 + place} of {name!r} is out of range",
                expected=f"0 to {column.shape[1 + place]}, the padded size",
                got=str(lengths[i, j]),
            )
    items = []
    for sample, row in zip(column, lengths, strict=True):
        index = [slice(None)] * sample.ndim
        for place, length in zip(places, row, strict=True):
            index[place] = slice(int(length))
        items.append(sample[tuple(index)])
    return joined(items)


def split(name: str, column: Column, offsets: Array) -> Column:
    """Separate samples that are joined in dimension 0.

    Args:
        name: The column's name, for messages.
        column: The joined samples, an array.
        offsets: Where each begins, and where the last one ends, ``(N + 1,)``.

    Raises:
        UsageError: The offsets do not fit the column.
    """
    fits = isinstance(column, np.ndarray) and column.ndim and offsets.ndim == 1 and len(offsets)
    rising = fits and offsets.dtype.kind in "iu" and bool((offsets[1:] >= offsets[:-1]).all())
    if not rising or offsets[0] != 0 or offsets[-1] != len(column):
        raise UsageError(
            f"the offsets of {name!r} do not fit it",
            expected=f"rising integers (N + 1,) from 0 to {len(column)}, the length of {name!r}",
            got=f"{offsets.dtype}{list(offsets.shape)}"
            + (f" from {offsets[0]} to {offsets[-1]}" if offsets.size and offsets.ndim else ""),
        )
    assert isinstance(column, np.ndarray)
    return joined([column[a:b] for a, b in pairwise(offsets)])
