"""The sizes of each sample of a data set, checked against the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import Array
from fxelastic.edge.searching.columns import Column, Ragged, dims_of_sample
from fxelastic.errors import UsageError
from fxelastic.spec.input_sizes import sizes_of
from fxelastic.spec.symbols import shape_at
from fxelastic.spec.value_info import ValueInfo


def groups_of(columns: Sequence[Column], whole: Sequence[Column]) -> Array | None:
    """A number for each sample, equal for samples that can be in one batch.

    Args:
        columns: Columns whose samples are stacked: equal shapes can be in one batch.
        whole: Columns of inputs without a batch dimension: only equal arrays can be in one batch.

    Returns:
        Numbers from 0, in the order of the shapes; None if all samples can be in one batch.
    """
    ragged = [column for column in columns if isinstance(column, Ragged)]
    fixed = [column for column in whole if isinstance(column, Ragged)]
    if not ragged and not fixed:
        return None
    keys = [
        (
            *(column.items[i].shape for column in ragged),
            *((column.items[i].shape, column.items[i].tobytes()) for column in fixed),
        )
        for i in range(len((ragged or fixed)[0]))
    ]
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([numbers[key] for key in keys], np.int64)


def checked_sizes(
    bundle: Bundle, inputs: Mapping[str, Column], whole: Mapping[str, Column], groups: Array
) -> dict[str, Array]:
    """The sizes of each sample, by the symbol's name.

    Args:
        bundle: The bundle.
        inputs: The columns of inputs that hold samples, of equal length.
        whole: The other inputs: one array, or an array for each sample.
        groups: The group of each sample; one sample of each group is checked.

    Raises:
        UsageError: A sample does not fit the model; the message names the sample, the input and
            the dimension.
    """
    model = bundle.manifest.model
    names = [symbol.name for symbol in model.sizes]
    found = {name: np.empty(len(groups), np.int64) for name in names}
    for number in np.sort(np.unique(groups, return_index=True)[1]).tolist():
        shapes = []
        for info in bundle.inputs:
            is_whole = info.name in whole
            column = whole[info.name] if is_whole else inputs[info.name]
            if isinstance(column, Ragged):
                sample = column.items[number]
            else:
                sample = column if is_whole else np.asarray(column[number])
            dims = info.dims if is_whole else dims_of_sample(bundle, info)
            at = len(info.dims) if is_whole else bundle.manifest.batch_dims.get(info.name, 0)
            _check(info, dims, sample, number, at)
            batch = shape_at(info.dims[at : at + 1], {model.batch: model.batch_size})
            shape = (*sample.shape[:at], *batch, *sample.shape[at:])
            shapes.append((info.name, info.dims, shape))
        try:
            sizes = sizes_of(shapes, model.symbols)
        except UsageError as e:
            raise UsageError(
                f"sample {number} of the data: {e.what}", expected=e.expected, got=e.got, fix=e.fix
            ) from e
        for name in names:
            found[name][groups == groups[number]] = sizes.get(name, model.symbols[name].example)
    return found


def _check(
    info: ValueInfo, dims: Sequence[int | str], sample: Array, number: int, batch: int
) -> None:
    """Check a sample's dtype, rank and fixed sizes.

    Args:
        info: The input.
        dims: Its sizes without the samples.
        sample: The sample.
        number: The sample's number, for messages.
        batch: The dimension of the samples in the input.
    """
    where, problem = f"input {info.name!r} in sample {number} of the data", ""
    if str(sample.dtype) != info.dtype:
        problem = f"{where} has another dtype than the model takes"
    elif sample.ndim != len(dims):
        problem = f"{where} must have {len(dims)} dimensions, got {sample.ndim}"
    else:
        for i, (dim, size) in enumerate(zip(dims, sample.shape, strict=True)):
            if isinstance(dim, int) and dim != size:
                problem = f"dimension {i + (i >= batch)} of {where} must be {dim}, got {size}"
    if problem:
        raise UsageError(
            problem,
            expected=f"{info.dtype}[{', '.join(map(str, dims))}]",
            got=f"{sample.dtype}{list(sample.shape)}",
            fix="pass each sample without a batch dimension" if sample.ndim > len(dims) else None,
        )
