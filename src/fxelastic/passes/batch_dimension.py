"""Detect a batch that is not in the first dimension, as in recurrent layers by default."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxelastic.errors import listed
from fxelastic.ir import trees

logger = logging.getLogger(__name__)

#: Largest relative difference that counts as another order of summation: for dtypes of at most
#: 16 bits, and for others.
_TOLERANCES = (5e-2, 1e-3)


def batch_elsewhere(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: Sequence[str],
    batched: Sequence[int],
) -> str | None:
    """Find inputs that have the batch in dimension 1.

    Samples don't affect one another: the result for one sample alone is its part of the result for
    all samples. If this fails along dimension 0 and holds along dimension 1, the batch is in
    dimension 1. States of recurrent layers may have it there while other inputs have it in
    dimension 0.

    Args:
        model: The clone for the capture, safe to run.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        names: Names of the inputs, one for each tensor in them.
        batched: Positions of the tensors whose dimension 0 counts as the batch.

    Returns:
        A warning; None if dimension 0 is the batch, or the results don't show it.
    """
    leaves, tree = trees.flatten((args, kwargs))
    first = next((i for i, leaf in enumerate(leaves) if _dims(leaf) >= 2), None)
    if first is None:
        return None
    compare = _Samples(model, tree, leaves)
    rows = dict.fromkeys(batched or [first], 0)
    independent = compare.independent(rows)
    if independent:
        return None
    if independent is None:
        columns = next(
            (c for c in _columns(leaves, rows) if compare.independent({**rows, **c})), {}
        )
        rows = {i: dim for i, dim in rows.items() if i not in columns}
        if not columns or not rows:
            return None
        return (
            "the batch seems to be in dimension 1 of "
            f"{listed(repr(names[i]) for i in columns)}, and "
            f"in dimension 0 of {listed(repr(names[i]) for i in rows)}; wrap the model in a module "
            "that takes it in dimension 0 of each and transposes"
        )
    found = next((dims for dims in _candidates(leaves, first) if compare.independent(dims)), None)
    if found is None:
        return None
    inputs = listed(repr(names[i]) for i, dim in found.items() if dim == 1)
    layers = _sequence_first(model)
    fix = (
        f"build {listed(map(repr, layers))} with batch_first=True and pass the batch in dimension 0"
        if layers
        else "wrap the model in a module that takes the batch in dimension 0 and transposes"
    )
    return (
        f"the batch seems to be in dimension 1 of {inputs}: along dimension 0, the result for a "
        f"sample depends on the others; {fix}"
    )


def _columns(leaves: Sequence[Any], rows: Mapping[int, int]) -> list[dict[int, int]]:
    """Sets of inputs with as many columns as there are rows, such as states of layers.

    The first set has the inputs that are not in ``rows``. The second has all but the first input,
    since the number of layers may equal the number of samples by coincidence.
    """
    first = next(iter(rows))
    size = leaves[first].shape[0]
    every = {i: 1 for i, leaf in enumerate(leaves) if _dims(leaf) >= 2 and leaf.shape[1] == size}
    others = {i: 1 for i in every if i not in rows}
    later = {i: 1 for i in every if i != first}
    return [columns for columns in (others, later) if columns]


def _candidates(leaves: Sequence[Any], first: int) -> list[dict[int, int]]:
    """Dimensions that may be the batch, by input: of all inputs of that size, or of one."""
    size = leaves[first].shape[1]
    every = {}
    for i, leaf in enumerate(leaves):
        if _dims(leaf) >= 2 and leaf.shape[1] == size:
            every[i] = 1
        elif _dims(leaf) >= 1 and leaf.shape[0] == size:
            every[i] = 0
    alone = {i: dim for i, dim in every.items() if dim == 1}
    return [every, alone, {first: 1}]


class _Samples:
    """Runs a model on one sample and on all samples."""

    def __init__(self, model: nn.Module, tree: trees.Tree, leaves: list[Any]) -> None:
        self._model = model
        self._tree = tree
        self._leaves = leaves

    def independent(self, dims: Mapping[int, int]) -> bool | None:
        """Whether the result for the last sample alone is its part of the result for all samples.

        Args:
            dims: The dimension of the samples, by the inputs' positions.

        Returns:
            None if the model does not run on that sample, or no result has a part for it.
        """
        sizes = {self._leaves[i].shape[dim] for i, dim in dims.items()}
        if len(sizes) != 1:
            return None
        (size,) = sizes
        every, one = (self._taken(dims, n, size) for n in (range(max(size, 2)), [size - 1]))
        try:
            of_all, of_one = self._run(every), self._run(one)
        except Exception as e:  # noqa: BLE001  # the user's own code, on other sizes
            logger.debug("the model does not run on one sample: %s", e)
            return None
        if len(of_all) != len(of_one):
            return None
        parts = [_part(a, b, max(size, 2)) for a, b in zip(of_all, of_one, strict=True)]
        if any(part is False for part in parts):
            return False
        return True if any(parts) else None

    def _taken(self, dims: Mapping[int, int], rows: Sequence[int], size: int) -> list[Any]:
        taken = list(self._leaves)
        for i, dim in dims.items():
            index = torch.tensor([row % size for row in rows], device=taken[i].device)
            taken[i] = taken[i].detach().index_select(dim, index)
        return [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in taken]

    def _run(self, leaves: list[Any]) -> list[Any]:
        args, kwargs = trees.unflatten(self._tree, leaves)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return trees.flatten(self._model(*args, **kwargs))[0]


def _part(of_all: Any, of_one: Any, size: int) -> bool | None:
    """Whether one result is a part of another; None if both are the same for any samples."""
    if not isinstance(of_all, torch.Tensor) or of_all.dim() != of_one.dim():
        return None
    differ = [d for d in range(of_all.dim()) if of_all.shape[d] != of_one.shape[d]]
    if not differ:
        return None if _close(of_all, of_one) else False
    (dim, *others) = differ
    if others or of_all.shape[dim] % size or of_all.shape[dim] // size != of_one.shape[dim]:
        return None
    n = of_one.shape[dim]
    return _close(of_all.narrow(dim, of_all.shape[dim] - n, n), of_one)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    tolerance = _TOLERANCES[a.dtype.itemsize > 2]
    if a.dtype.itemsize == 1:  # torch has no arithmetic with 8 bits
        a, b = a.float(), b.float()
    finite = b[b.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(a, b, 0.0, tolerance * scale, equal_nan=True)


def _dims(value: Any) -> int:
    return value.dim() if isinstance(value, torch.Tensor) else 0


def _sequence_first(model: nn.Module) -> list[str]:
    """The outermost layers of torch whose ``batch_first`` is False."""
    parts = dict(model.named_modules())
    found: dict[str, None] = {}
    for name, part in parts.items():
        if getattr(part, "batch_first", None) is not False or not _is_torchs(part):
            continue
        while name and _is_torchs(parts[name.rpartition(".")[0]], ".transformer"):
            name = name.rpartition(".")[0]
        found[name or type(part).__name__] = None
    return list(found)


def _is_torchs(part: nn.Module, end: str = "") -> bool:
    where = type(part).__module__
    return where.startswith("torch.nn.modules.") and where.endswith(end)
