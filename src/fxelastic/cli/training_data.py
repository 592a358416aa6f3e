"""The option ``--data`` of training: load the data that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.cli.reference import describe, load_reference
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_VALIDATION = "val_"


#: A function of the dimension of the samples in each input, None for an input that holds none, and
#: of that in the results. It returns the batches to train on, and the batches to validate on or
#: None.
Loaders = Callable[[Mapping[str, int | None], int], tuple[Any, Any]]


def load_data(text: str, batch_size: int, distributed: bool) -> Loaders:
    """Read the data that ``--data`` names.

    Args:
        text: An ``.npz`` file, or a reference.
        batch_size: The number of samples in a batch, for an ``.npz`` file.
        distributed: Give each process its share, for an ``.npz`` file.

    Returns:
        A function that creates the loaders once the model's inputs are known.

    Raises:
        UsageError: The data can't be read or is malformed.
    """
    if text.endswith(".npz"):
        return _from_file(Path(text), batch_size, distributed)
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
        training, validation = found["train"], found.get("validation")
        return lambda *_: (training, validation)
    # A list of batches is a loader, and a pair is two of them.
    if isinstance(found, tuple):
        if len(found) != 2:
            raise UsageError(
                f"--data {text} must be a loader or a pair of loaders",
                expected="a loader, (training, validation) or {'train': …, 'validation': …}",
                got=f"a tuple of {len(found)}",
            )
        return lambda *_: found
    return lambda *_: (found, None)


def _from_file(path: Path, batch_size: int, distributed: bool) -> Loaders:
    from fxelastic.edge.npz_files import read_npz

    if batch_size < 1:
        raise UsageError(
            f"--batch-size must be at least 1, got {batch_size}",
            expected="an integer of at least 1",
            got=str(batch_size),
        )
    arrays = read_npz(path)
    # An input may be called val_mask: it belongs to the validation only if there is also a mask.
    plain = {k for k in arrays if not k.startswith(_VALIDATION)}
    held_out = {
        k for k in arrays.keys() - plain if not plain or k.removeprefix(_VALIDATION) in arrays
    }
    training = {k: v for k, v in arrays.items() if k not in held_out}
    validation = {k.removeprefix(_VALIDATION): v for k, v in arrays.items() if k in held_out}
    if not training:
        raise UsageError(
            f"--data {path} has no arrays to train on",
            expected="an array x, or one for each of the model's inputs, and targets (or y)",
            got=", ".join(arrays) or "no array",
            fix="write the file with numpy.savez(path, x=..., targets=...)",
        )

    def loaders(dims: Mapping[str, int | None], result_dim: int) -> tuple[Any, Any]:
        # Inputs without a batch dimension may be in the training part alone.
        shared = {name: a for name, a in training.items() if dims.get(name, 0) is None}
        first = _loader(path, training, dims, result_dim, batch_size, True, distributed)
        if not validation:
            return first, None
        held_out = shared | validation
        return first, _loader(path, held_out, dims, result_dim, batch_size, False, distributed)

    return loaders


def _loader(
    path: Path,
    arrays: dict[str, np.ndarray[Any, Any]],
    dims: Mapping[str, int | None],
    result_dim: int,
    batch_size: int,
    shuffle: bool,
    distributed: bool,
) -> Any:
    import torch
    from torch.utils.data import DataLoader, Dataset, DistributedSampler

    label = "targets" if "targets" in arrays else "y"
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
        where[label] = result_dim if result_dim < len(shape) else 0
        sizes[label] = shape[where[label]] if shape else 0
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
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    length = next(iter(sizes.values()))

    def of(name: str, indices: list[int]) -> torch.Tensor:
        tensor, dim = tensors[name], where[name]
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
        drop_last=shuffle and length > batch_size,
    )
