"""The samples of a file, as batches of a model's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.errors import UsageError

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition

_TARGETS = ("y", "target", "targets", "label", "labels")


def sample_batches(
    path: Path, partition: Partition, option: str, most: int, exact: int | None = None
) -> list[tuple[Any, Any]]:
    """Read the samples of an ``.npz`` file.

    Args:
        path: The file, with an array for each of the model's inputs, by name; ``x`` for the only
            one. Targets may be under ``y``.
        partition: The model.
        option: The option that names the file, for messages.
        most: The most samples of a batch, if the model takes any number.
        exact: The number of samples of each batch; None to choose it.

    Returns:
        For each batch the inputs ``(args, kwargs)``, and the targets or None.

    Raises:
        UsageError: The file can't be read, or does not fit the model.
    """
    import torch

    from fxelastic.backends.onnxruntime.teacher import batch_size
    from fxelastic.edge.npz_files import read_npz
    from fxelastic.ir import trees

    names = list(partition.signature.names)
    found = read_npz(path)
    if len(names) == 1 and names[0] not in found and "x" in found:
        found[names[0]] = found["x"]
    arrays = {name: found[name] for name in names if name in found}
    if set(arrays) != set(names):
        raise UsageError(
            f"{option} {path} does not have the model's inputs",
            expected="an array for each of " + ", ".join(names),
            got=", ".join(arrays) or "none of them",
        )
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    dims = partition.batch_dims
    sizes = {n: tensors[n].shape[d] if tensors[n].dim() > d else 0 for n, d in dims.items()}
    if len(set(sizes.values())) > 1 or not all(sizes.values()):
        raise UsageError(
            f"{option} {path}: the arrays must have the same number of samples",
            expected="one entry in each array for each sample",
            got=", ".join(f"{name}: {size}" for name, size in sizes.items()),
        )
    n_samples = next(iter(sizes.values()), 1)
    given = next((found[name] for name in _TARGETS if name in found and name not in names), None)
    targets = None
    if given is not None and given.ndim and len(given) == n_samples:
        targets = torch.from_numpy(given)
    size = min(most, max(1, n_samples // 2))
    if exact is not None:
        size = exact
    elif not partition.dynamic_batch and dims:
        size = batch_size(partition)
    batches = []
    for i in range(0, n_samples - size + 1, size):
        leaves = [tensors[n].narrow(dims[n], i, size) if n in dims else tensors[n] for n in names]
        inputs = trees.unflatten(partition.signature.arguments, leaves)
        batches.append((inputs, None if targets is None else targets[i : i + size]))
    return batches
