"""The option ``--data`` of training: load the data that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fxelastic.cli.data_files import LABELS, VALIDATION, Images, read_columns
from fxelastic.cli.data_paths import is_data_file
from fxelastic.cli.model_inputs import call_of
from fxelastic.cli.reference import describe, load_reference
from fxelastic.cli.sized_data import SizedColumns, apart, is_sized, label_of
from fxelastic.edge.searching.columns import Ragged
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from fxelastic.cli.data_files import Column
    from fxelastic.cli.model_inputs import ModelInputs
    from fxelastic.edge.searching.columns import SampleShapes


class TrainingData(Protocol):
    """The samples that ``--data`` names."""

    def __call__(self, shapes: SampleShapes) -> tuple[Any, Any]:
        """The batches to train on, and the batches to validate on or None.

        Args:
            shapes: The shapes of one sample, as the model takes and returns it.
        """
        ...  # pragma: no cover

    def first(self) -> tuple[Any, Any] | None:
        """The inputs and targets of a few samples; None if reading them would use them up."""
        ...  # pragma: no cover

    def targets(self) -> Any:
        """The targets of all samples that are in memory, else of a few; None for none."""
        ...  # pragma: no cover

    def n_samples(self) -> int | None:
        """The number of samples to train on in an epoch; None if it is not known."""
        ...  # pragma: no cover

    def samples(self, n: int, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """At most n samples as arrays, those to validate on if there are any.

        Args:
            n: The number.
            names: The names of the model's inputs.
        """
        ...  # pragma: no cover


def load_data(
    text: str, batch_size: int, distributed: bool, model: ModelInputs | None = None
) -> TrainingData:
    """Read the data that ``--data`` names.

    Args:
        text: A file or folder, see `read_columns`, or a reference.
        batch_size: The number of samples in a batch, for files.
        distributed: Give each process its share, for files.
        model: The model's inputs, for files.

    Returns:
        A function that creates the loaders once the model's inputs are known.

    Raises:
        UsageError: The data can't be read or is malformed.
    """
    if is_data_file(text):
        return _from_file(Path(text), batch_size, distributed, model)
    found = load_reference(text, "--data")
    if callable(found):
        try:
            found = found()
        except (Exception, SystemExit) as e:
            raise UsageError(
                f"--data {text} raised an error while creating the loaders",
                expected="a function without arguments that returns loaders",
                got=describe(e),
                fix="correct it; --debug shows the traceback",
            ) from e
    if isinstance(found, Mapping) and "train" in found:
        return _Loaders(text, found["train"], found.get("validation"))
    # A list of batches is a loader, and a pair is two of them.
    if isinstance(found, tuple):
        if len(found) != 2:
            raise UsageError(
                f"--data {text} must be a loader or a pair of loaders",
                expected="a loader, (training, validation) or {'train': …, 'validation': …}",
                got=f"a tuple of {len(found)}",
            )
        return _Loaders(text, *found)
    return _Loaders(text, found, None)


@dataclass(frozen=True)
class _Loaders:
    """Loaders that Python code made."""

    text: str
    training: Any
    validation: Any

    def __call__(self, shapes: SampleShapes) -> tuple[Any, Any]:
        return self.training, self.validation

    def first(self) -> tuple[Any, Any] | None:
        # An iterator would lose its first batch.
        if not hasattr(self.training, "__iter__") or iter(self.training) is self.training:
            return None
        return next((_parts(batch) for batch in self.training), None)

    def targets(self) -> Any:
        batch = self.first()
        return None if batch is None else batch[1]

    def n_samples(self) -> int | None:
        batch = self.first()
        if batch is None or not hasattr(self.training, "__len__"):
            return None
        args, kwargs = call_of(batch[0])
        return len(self.training) * max(map(len, (*args, *kwargs.values())))

    def samples(self, n: int, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        import numpy as np

        kept: dict[str, list[np.ndarray[Any, Any]]] = {}
        n_samples = 0
        for inputs, targets in self._batches():
            args, kwargs = call_of(inputs)
            found = {**dict(zip(names, args, strict=False)), **kwargs}
            if targets is not None:
                found[LABELS[0]] = targets
            arrays = {name: np.asarray(value) for name, value in found.items()}
            for name, array in arrays.items():
                kept.setdefault(name, []).append(array)
            n_samples += max(map(len, arrays.values()))
            if n_samples >= n:
                break
        try:
            return {name: np.concatenate(arrays)[:n] for name, arrays in kept.items()}
        except ValueError as e:
            raise UsageError(
                f"the samples of --data {self.text} have different sizes",
                expected="batches of samples of equal sizes",
                got=str(e),
                fix="write samples for the device as an .npz file, and name it as data in the "
                "section [search] of fxelastic.toml",
            ) from e

    def _batches(self) -> Iterator[tuple[Any, Any]]:
        loader = self.training if self.validation is None else self.validation
        return map(_parts, loader)


def _parts(batch: Any) -> tuple[Any, Any]:
    """The inputs and the targets of a loader's batch, as training takes them."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    return batch, None


def _from_file(
    path: Path, batch_size: int, distributed: bool, model: ModelInputs | None
) -> TrainingData:
    columns = read_columns(path, model)
    # An input may be called val_mask: it belongs to the validation only if there is also a mask.
    plain = {k for k in columns if not k.startswith(VALIDATION)}
    others = {
        k for k in columns.keys() - plain if not plain or k.removeprefix(VALIDATION) in columns
    }
    training = {k: v for k, v in columns.items() if k not in others}
    validation = {k.removeprefix(VALIDATION): v for k, v in columns.items() if k in others}
    if not training:
        raise UsageError(
            f"--data {path} has no arrays to train on",
            expected="an array x, or one for each of the model's inputs, and targets (or y)",
            got=", ".join(columns) or "no array",
            fix="write the file with numpy.savez(path, x=..., targets=...)",
        )
    if is_sized(columns, () if model is None else model.names()):
        first, held_out = _without(Images, training), _without(Images, validation)
        return SizedColumns(path, apart(first), apart(held_out), batch_size, distributed)
    first, held_out = _without(Ragged, training), _without(Ragged, validation)
    return _Columns(path, first, held_out, batch_size, distributed)


def _without(kind: type, columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: column for name, column in columns.items() if not isinstance(column, kind)}


@dataclass(frozen=True)
class _Columns:
    """The arrays of a file or folder."""

    path: Path
    training: Mapping[str, Column]
    validation: Mapping[str, Column]
    batch_size: int
    distributed: bool

    def __call__(self, shapes: SampleShapes) -> tuple[Any, Any]:
        dims, result_dim = shapes.dims, shapes.result_dim
        # Inputs without a batch dimension may be in the training part alone.
        shared = {name: a for name, a in self.training.items() if dims.get(name, 0) is None}
        first = self._loader(self.training, dims, result_dim, True)
        if not self.validation:
            return first, None
        held_out = shared | dict(self.validation)
        return first, self._loader(held_out, dims, result_dim, False)

    def first(self) -> tuple[Any, Any] | None:
        import torch

        label = label_of(self.training)
        each = _n_samples(self.training)
        if not all(each.values()) or (label in each and len(each) == 1):
            return None  # The loaders' error says what is wrong.
        n = min(self.batch_size, 2)
        found = {name: torch.from_numpy(a) for name, a in _head(self.training, n).items()}
        targets = found.pop(label, None)
        return found["x"] if list(found) == ["x"] else found, targets

    def targets(self) -> Any:
        import torch

        column = self.training.get(label_of(self.training))
        return None if column is None or isinstance(column, Images) else torch.from_numpy(column)

    def n_samples(self) -> int | None:
        return max(_n_samples(self.training).values(), default=None)

    def samples(self, n: int, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        shared = {k: a for k, a in self.training.items() if k not in _n_samples(self.training)}
        found = _head(shared | dict(self.validation or self.training), n)
        label = label_of(found)
        return {LABELS[0] if name == label else name: array for name, array in found.items()}

    def _loader(
        self,
        columns: Mapping[str, Column],
        dims: Mapping[str, int | None],
        result_dim: int,
        shuffle: bool,
    ) -> Any:
        return _loader(
            self.path, columns, dims, result_dim, self.batch_size, shuffle, self.distributed
        )


def _n_samples(columns: Mapping[str, Column]) -> dict[str, int]:
    """The arrays that have an entry for each sample, as far as their first dimensions tell."""
    lengths = {name: len(column) for name, column in columns.items() if column.ndim}
    n = lengths.get(label_of(columns), next(iter(lengths.values()), 0))
    return {name: length for name, length in lengths.items() if length == n}


def _head(columns: Mapping[str, Column], n: int) -> dict[str, np.ndarray[Any, Any]]:
    """The first n samples."""
    import numpy as np

    each = _n_samples(columns)
    return {
        name: column[range(min(n, len(column)))]
        if isinstance(column, Images)
        else np.asarray(column[:n] if name in each else column)
        for name, column in columns.items()
    }


def _loader(
    path: Path,
    arrays: Mapping[str, Column],
    dims: Mapping[str, int | None],
    result_dim: int,
    batch_size: int,
    shuffle: bool,
    distributed: bool,
) -> Any:
    import torch
    from torch.utils.data import DataLoader, Dataset, DistributedSampler

    label = label_of(arrays)
    names = [name for name in arrays if name != label]
    if names == ["x"] and len(dims) == 1:
        dims = {"x": next(iter(dims.values()))}
    where = {name: dims.get(name, 0) for name in names}
    sizes = {
        name: arrays[name].shape[dim] if dim < arrays[name].ndim else 0
        for name, dim in where.items()
        if dim is not None
    }
    if label in arrays:
        shape = arrays[label].shape
        dim = result_dim if result_dim < len(shape) else 0
        where[label], sizes[label] = dim, shape[dim] if shape else 0
    if len(set(sizes.values())) != 1:
        raise UsageError(
            f"--data {path}: the arrays have different lengths",
            expected="one entry in each array for each sample",
            got=", ".join(f"{name}: {size}" for name, size in sizes.items()),
        )
    if not all(sizes.values()) or not sizes:
        raise UsageError(
            f"--data {path} has no samples",
            expected="at least one entry in each array",
            got=", ".join(f"{name}: {size}" for name, size in sizes.items()),
        )
    tensors = {
        name: array if isinstance(array, Images) else torch.from_numpy(array)
        for name, array in arrays.items()
    }
    length = next(iter(sizes.values()))

    def of(name: str, indices: list[int]) -> torch.Tensor:
        tensor, dim = tensors[name], where[name]
        if isinstance(tensor, Images):
            return torch.from_numpy(tensor[indices])
        return tensor if dim is None else tensor[(slice(None),) * dim + (indices,)]

    class Samples(Dataset[Any]):
        def __len__(self) -> int:
            return length

        def __getitems__(self, indices: list[int]) -> list[int]:
            return indices

    def batch(indices: list[int]) -> Any:
        # Index the whole batch: picking single samples takes longer than running a small network.
        chosen = {name: of(name, indices) for name in names}
        inputs = chosen["x"] if names == ["x"] else chosen
        return inputs, of(label, indices) if label in tensors else None

    samples = Samples()
    sampler: Any = DistributedSampler(samples, shuffle=True) if shuffle and distributed else None
    return DataLoader(
        samples,
        batch_size,
        shuffle=shuffle and sampler is None,
        sampler=sampler,
        collate_fn=batch,
        # Batch normalisation fails for a last batch of one sample.
        drop_last=shuffle and (length if sampler is None else len(sampler)) > batch_size,
    )
