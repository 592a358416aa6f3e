"""Find a batch that is not in the first dimension, as in recurrent layers by default."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fxelastic.errors import UsageError
from fxelastic.ir import trees
from fxelastic.passes.batch import BatchedInputs
from fxelastic.passes.dynamic_shapes import DynamicShapes

logger = logging.getLogger(__name__)

#: Largest relative difference that counts as another order of summation: for dtypes of at most
#: 16 bits, and for others.
_TOLERANCES = (5e-2, 1e-3)

_NAMED = "dynamic_shapes names it"
_ALONE = "only along these dimensions, the result for a sample does not depend on the others"


def with_dimensions(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: BatchedInputs,
    shapes: DynamicShapes,
) -> BatchedInputs:
    """Find the dimension of the samples in each input.

    Samples don't affect one another: the result for one sample alone is its part of the result for
    all samples. If this fails along dimension 0 and holds along dimension 1, the batch is in
    dimension 1. States of recurrent layers may have it there while other inputs have it in
    dimension 0. A dimension that the user names as a batch is the batch.

    Args:
        model: The clone for the capture, safe to run.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        batch: The inputs whose dimension 0 counts as the batch.
        shapes: The dimensions that the user names or fixes.

    Returns:
        The batch; the same if it is in dimension 0, or the results don't show where it is.

    Raises:
        UsageError: A dimension that the user names as a batch is not the batch, and dimension 0 is.
    """
    leaves, tree = trees.flatten((args, kwargs))
    compare = _Samples(model, tree, leaves)
    free = _Free(leaves, shapes)
    named = shapes.named_batch
    if any(named.values()):
        dims = _completed(named, free, compare)
        if compare.independent(dims) is False and compare.independent(batch.dims):
            raise UsageError(
                f"dynamic_shapes uses the name {shapes.batch_name!r}, which stands for the batch "
                "size, in a dimension that does not hold samples",
                expected=f"another name, or {shapes.batch_name!r} in dimension 0, along which "
                "results don't depend on one another",
                got=repr(shapes.batch_name),
            )
        return BatchedInputs(dims, why=_NAMED)
    if named:
        batch = replace(batch.with_rows(named), why=_NAMED)
    first = next((i for i in free.dims if _dims(leaves[i]) >= 2), None)
    if first is None:
        return batch
    rows = dict(batch.dims) or {first: 0}
    independent = compare.independent(rows)
    if independent or (named and independent is False):
        return batch
    if independent is None:
        for columns in _columns(free, rows):
            if rows.keys() - columns and compare.independent({**rows, **columns}):
                dims = dict(sorted({**rows, **columns}.items()))
                return replace(batch.without(columns), dims=dims, why=batch.why or _ALONE)
        return batch
    found = next((dims for dims in _candidates(free, first) if compare.independent(dims)), None)
    return batch if found is None else BatchedInputs(found, why=_ALONE)


class _Free:
    """The dimensions that may hold samples.

    Attributes:
        leaves: The flat inputs.
        dims: Their dimensions, by the inputs' positions, without those that the user fixes.
    """

    def __init__(self, leaves: Sequence[Any], shapes: DynamicShapes) -> None:
        self.leaves = leaves
        self.dims = {
            i: [dim for dim in range(_dims(leaf)) if (i, dim) not in shapes.static]
            for i, leaf in enumerate(leaves)
            if i not in shapes.whole
        }

    def of_size(
        self, size: int, likely: int, without: Container[int] = (), start: int = 0
    ) -> dict[int, int]:
        """A dimension of a size in each input that has one: the likely one, or the first."""
        found = {}
        for i, dims in self.dims.items():
            fit = [d for d in dims if d >= start and self.leaves[i].shape[d] == size]
            if fit and i not in without:
                found[i] = likely if likely in fit else fit[0]
        return found


def _completed(named: Mapping[int, int], free: _Free, compare: _Samples) -> dict[int, int]:
    """The dimensions that the user names, and those that the model ties to them."""
    first, dim = next(iter(named.items()))
    size = free.leaves[first].shape[dim]
    sets = [{**named, **free.of_size(size, likely, named)} for likely in (dim, 0)]
    tried = [(dims, compare.independent(dims)) for dims in (dict(named), *sets)]
    runs = [dims for dims, independent in tried if independent is not None]
    return dict(sorted((runs or [dict(named)])[0].items()))


def _columns(free: _Free, rows: Mapping[int, int]) -> list[dict[int, int]]:
    """Sets of inputs with as many columns as there are rows, such as states of layers.

    The first sets have the inputs that are not in ``rows``. The others have all but the first
    input, since the number of layers may equal the number of samples by coincidence.
    """
    first = next(iter(rows))
    size = free.leaves[first].shape[0]
    likely = range(1, max(map(_dims, free.leaves)))
    return [
        found
        for without in (rows, (first,))
        for dim in likely
        if (found := free.of_size(size, dim, without, start=1))
    ]


def _candidates(free: _Free, first: int) -> list[dict[int, int]]:
    """Dimensions that may be the batch, by input: of all inputs of that size, or of one."""
    if 1 not in free.dims[first]:
        return []
    every = free.of_size(free.leaves[first].shape[1], 1)
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
