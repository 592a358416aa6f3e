"""Training data whose samples have different sizes: padded with lengths, joined, or ragged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fxelastic.cli.data_files import LABELS
from fxelastic.edge.searching.columns import (
    LENGTHS,
    OFFSETS,
    Column,
    Ragged,
    SampleShapes,
    columns_of,
    split,
)
from fxelastic.edge.searching.data import Dataset, renamed
from fxelastic.errors import UsageError


def is_sized(columns: Mapping[str, Any], inputs: Sequence[str] = ()) -> bool:
    """Whether columns hold samples of different sizes, or say how long each one is.

    Args:
        columns: The columns by name.
        inputs: The names of the model's inputs; one may be called ``lengths``, too.
    """
    return any(
        isinstance(column, Ragged) or (_kind(name) and name not in inputs)
        for name, column in columns.items()
    )


def label_of(columns: Mapping[str, Any]) -> str:
    """The name of the targets."""
    return LABELS[0] if LABELS[0] in columns else LABELS[1]


@dataclass(frozen=True)
class SizedColumns:
    """The columns of a file, of which some are ragged, or padded with their lengths.

    Batches hold samples of equal sizes, at most ``batch_size`` of them.

    Attributes:
        path: The file or folder.
        training: The columns to train on, from `apart`, and lengths of the padded ones.
        validation: Those to validate on; empty for none.
        batch_size: The largest number of samples in a batch.
        distributed: Give each process its share.
    """

    path: Path
    training: Mapping[str, Column]
    validation: Mapping[str, Column]
    batch_size: int
    distributed: bool

    def __call__(self, shapes: SampleShapes) -> tuple[Any, Any]:
        """The loaders to train on and to validate on; see `TrainingData`."""
        first = self._loader(self.training, shapes, True)
        if not self.validation:
            return first, None
        # Inputs without a batch dimension may be in the training part alone.
        shared = {name: a for name, a in self.training.items() if shapes.dims.get(name, 0) is None}
        return first, self._loader({**shared, **self.validation}, shapes, False)

    def first(self) -> tuple[Any, Any]:
        """The inputs and targets of the longest sample, with its padding."""
        import torch

        longest, n = int(np.argmax(self._sizes.prod(1))), len(self._sizes)
        found: dict[str, torch.Tensor] = {}
        for name, column in self.training.items():
            if isinstance(column, Ragged):
                found[name] = torch.from_numpy(column.items[longest][None])
            elif not _kind(name):
                one = column[longest : longest + 1] if _has(column, n) else column
                found[name] = torch.from_numpy(one)
        targets = found.pop(label_of(found), None)
        return found["x"] if list(found) == ["x"] else found, targets

    def targets(self) -> Any:
        """All targets as a tensor; None if there are none, or their sizes differ."""
        import torch

        column = self.training.get(label_of(self.training))
        return torch.from_numpy(column) if isinstance(column, np.ndarray) else None

    def n_samples(self) -> int:
        """The number of samples to train on in an epoch."""
        return len(self._sizes)

    def samples(self, n: int, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """At most n samples as arrays, joined or with their lengths; see `TrainingData`."""
        columns = self.validation or self.training
        n_samples, label, found = len(_sizes(columns)), label_of(columns), {}
        for name, column in {**self.training, **columns}.items():
            head, dot, kind = name.partition(".")
            own = f"{LABELS[0]}{dot}{kind}" if head == label else name
            if isinstance(column, Ragged):
                items = column.items[:n]
                found[own] = _joined(self.path, name, items)
                found[f"{own}.{OFFSETS}"] = np.cumsum([0, *map(len, items)])
            else:
                found[own] = column[:n] if _has(column, n_samples) else column
        return found

    @cached_property
    def _sizes(self) -> np.ndarray[Any, Any]:
        return _sizes(self.training)

    def _loader(self, columns: Mapping[str, Column], shapes: SampleShapes, shuffle: bool) -> Any:
        from torch.utils.data import DataLoader

        data = self._dataset(columns, shapes)
        groups = np.zeros(len(data), np.int64) if data.groups is None else data.groups
        alone = len(shapes.dims) == 1

        def batch(indices: list[int]) -> Any:
            import torch

            arrays, target = data.batch(np.array(indices))
            inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
            targets = torch.from_numpy(target) if data.labelled else None
            return next(iter(inputs.values())) if alone else inputs, targets

        return DataLoader(
            range(len(data)),  # type: ignore[arg-type]  # a sequence of indices
            batch_sampler=BatchesBySize(groups, self.batch_size, shuffle, self.distributed),
            collate_fn=batch,
        )

    def _dataset(self, columns: Mapping[str, Column], shapes: SampleShapes) -> Dataset:
        if not shapes.sizes:
            name = next((name for name, dim in shapes.dims.items() if dim is not None), "x")
            raise UsageError(
                f"--data {self.path} has samples of different sizes, which the model does not take",
                expected="a size of the model that varies",
                got="a model that was captured for one size",
                fix=f"pass --dynamic, such as --dynamic {name}:1=seq, or leave the samples padded, "
                "without their lengths",
            )
        if len(shapes.dims) == 1:
            columns = {renamed(name, *shapes.dims): column for name, column in columns.items()}
        try:
            found = columns_of(shapes, columns)
        except UsageError as e:
            raise UsageError(
                f"--data {self.path}: {e.what}", expected=e.expected, got=e.got, fix=e.fix
            ) from e
        label = label_of(found)
        shared = {name: a for name, a in found.items() if shapes.dims.get(name, 0) is None}
        each = {name: column for name, column in found.items() if name not in shared}
        counts = {name: len(column) for name, column in each.items()}
        if len(set(counts.values())) != 1 or not set(each) - {label} or 0 in counts.values():
            raise UsageError(
                f"--data {self.path} needs as many samples in each array",
                expected="at least one entry in each array, and as many in all",
                got=", ".join(f"{name}: {n}" for name, n in counts.items()) or "no array",
            )
        targets = each.pop(label, np.arange(counts[next(iter(counts))]))
        dims = {name: dim for name in each if (dim := shapes.dims.get(name, 0))}
        return Dataset(each, targets, shared, labelled=label in found, dims=dims)


class BatchesBySize:
    """The indices of batches, in which all samples have one size.

    Attributes:
        groups: A number for each sample, equal for samples of equal sizes.
        batch_size: The largest number of samples in a batch.
        shuffle: Shuffle the samples and the batches in each epoch.
        distributed: Whether each of the processes gets a share of the batches, all different.
    """

    def __init__(
        self, groups: np.ndarray[Any, Any], batch_size: int, shuffle: bool, distributed: bool
    ) -> None:
        self._members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        self._batch_size, self._shuffle, self._distributed = batch_size, shuffle, distributed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, which is the same in all processes."""
        self._epoch = epoch

    def __len__(self) -> int:
        n = sum(-(-len(members) // self._batch_size) for members in self._members)
        return -(-n // self._world()[1])

    def __iter__(self) -> Iterator[list[int]]:
        import torch

        generator = torch.Generator().manual_seed(self._epoch) if self._distributed else None

        def order(n: int) -> list[int]:
            return torch.randperm(n, generator=generator).tolist() if self._shuffle else [*range(n)]

        batches = [
            found
            for members in self._members
            for found in np.array_split(
                members[order(len(members))],
                range(self._batch_size, len(members), self._batch_size),
            )
        ]
        rank, world = self._world()
        mixed = order(len(batches))
        for i in range(rank, len(self) * world, world):
            yield batches[mixed[i % len(mixed)]].tolist()

    def _world(self) -> tuple[int, int]:
        """The number of this process, and how many there are."""
        from torch import distributed

        if not (self._distributed and self._shuffle):
            return 0, 1
        return distributed.get_rank(), distributed.get_world_size()


def _kind(name: str) -> str:
    """``lengths`` or ``offsets`` if a column has this name, alone or after an array's."""
    last = name.rpartition(".")[2]
    return last if last in (LENGTHS, OFFSETS) else ""


def _has(column: Any, n_samples: int) -> bool:
    """Whether a column is an array of as many entries."""
    return isinstance(column, np.ndarray) and column.ndim > 0 and len(column) == n_samples


def apart(columns: Mapping[str, Column]) -> dict[str, Column]:
    """Columns with joined samples separated.

    Args:
        columns: The columns by name, and the offsets of those that hold joined samples.

    Raises:
        UsageError: Offsets do not fit their array.
    """
    shared = columns.get(OFFSETS)
    found: dict[str, Column] = {}
    for name, column in columns.items():
        if _kind(name) == OFFSETS:
            continue
        offsets = columns.get(f"{name}.{OFFSETS}")
        if offsets is None and isinstance(shared, np.ndarray) and not _kind(name):
            is_joined = shared.size and _has(column, shared.flat[-1])
            offsets = shared if is_joined else None
        found[name] = column if offsets is None else split(name, column, np.asarray(offsets))
    return found


def _sizes(columns: Mapping[str, Column]) -> np.ndarray[Any, Any]:
    """The sizes of each sample ``(N, K)``, as far as lengths and one ragged column tell."""
    for column in columns.values():
        if isinstance(column, Ragged):
            return np.array([item.shape for item in column.items])
    for name, column in columns.items():
        if _kind(name):
            lengths = np.asarray(column)
            return lengths.reshape(len(lengths), -1)
    return np.zeros((0, 1), np.int64)


def _joined(path: Path, name: str, items: Sequence[Any]) -> np.ndarray[Any, Any]:
    if len({item.shape[1:] for item in items}) > 1:
        raise UsageError(
            f"the samples of {name} in --data {path} differ in several dimensions",
            expected="samples that differ in their first dimension",
            got=", ".join(sorted({str(item.shape) for item in items})[:4]),
            fix="write samples for the device as an .npz file, padded and with lengths, and name "
            "it as data in the section [search] of fxelastic.toml",
        )
    return np.concatenate(items)
