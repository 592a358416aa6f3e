"""Checks of the options that kinds of branches take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fxelastic.errors import UsageError
from fxelastic.ir.partition import Partition

#: Positional and keyword arguments of one call of the model.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def shares(name: str, values: Any) -> tuple[float, ...]:
    """Check an option that is a sequence of shares.

    Args:
        name: The option's name, for the message.
        values: Its value.

    Raises:
        UsageError: It is not a sequence of numbers above 0 and below 1.
    """
    if not _is_sequence(values) or not all(_is_number(v, Real) and 0 < v < 1 for v in values):
        raise UsageError(
            f"{name} must hold numbers above 0 and below 1, got {values!r}",
            expected=f"a sequence, like {name}=(0.25, 0.5)",
            got=repr(values),
        )
    return tuple(values)


def counts(name: str, values: Any, least: int = 1) -> tuple[int, ...]:
    """Check an option that is a sequence of counts.

    Args:
        name: The option's name, for the message.
        values: Its value.
        least: The least count.

    Raises:
        UsageError: It is not a sequence of integers of at least ``least``.
    """
    if not _is_sequence(values) or not all(_is_number(v, int) and v >= least for v in values):
        raise UsageError(
            f"{name} must hold integers of at least {least}, got {values!r}",
            expected=f"a sequence, like {name}=(1, 2)",
            got=repr(values),
        )
    return tuple(values)


def as_batches(calibration: Any) -> tuple[Arguments, ...]:
    """Convert calibration data to the arguments of calls.

    Args:
        calibration: A tensor, which is one batch, or an iterable of batches, each a tensor, a
            tuple of positional inputs, a dict of keyword inputs or a pair ``(tuple, dict)``.

    Raises:
        UsageError: The data has no batches, or a batch of another type.
    """
    expected = "a tensor, or an iterable of batches in the forms of example_inputs"
    if isinstance(calibration, Tensor):
        calibration = (calibration,)
    if isinstance(calibration, (str, bytes, Mapping)) or not isinstance(calibration, Iterable):
        raise UsageError(
            f"calibration must be a tensor or an iterable, got a {type(calibration).__name__}",
            expected=expected,
            got=type(calibration).__name__,
        )
    batches: list[Arguments] = []
    for batch in calibration:
        if isinstance(batch, Tensor):
            batches.append(((batch,), {}))
        elif isinstance(batch, Mapping):
            batches.append(((), dict(batch)))
        elif isinstance(batch, tuple):
            pair = len(batch) == 2 and isinstance(batch[0], tuple) and isinstance(batch[1], dict)
            batches.append((batch[0], batch[1]) if pair else (batch, {}))
        else:
            raise UsageError(
                f"batch {len(batches)} of calibration must be a tensor, tuple or dict",
                expected=expected,
                got=type(batch).__name__,
            )
    if not batches:
        raise UsageError(
            "calibration must have at least one batch", expected=expected, got="no batch"
        )
    return tuple(batches)


def inputs_of(partition: Partition, batches: Sequence[Arguments]) -> list[dict[str, Any]]:
    """The model's inputs of calibration data by their names in the graph, for each batch.

    Args:
        partition: The model.
        batches: As `as_batches` returns them.

    Raises:
        UsageError: A batch has another structure, shape or dtype than the capture, holds no sample,
            or a value that is NaN or infinite. Minus infinity is allowed, as in a mask.
    """
    found = []
    for number, (args, kwargs) in enumerate(batches):
        what = f"batch {number} of calibration"
        try:
            leaves = partition.signature.flatten_arguments(args, kwargs)
            partition.checks_of(()).check(leaves)
        except UsageError as e:
            raise UsageError(
                f"{what}: {e.what}",
                expected=e.expected,
                got=e.got,
                fix="pass inputs like the example inputs, without targets",
            ) from e
        for name, value in zip(partition.signature.names, leaves, strict=True):
            dim = partition.batch_dims.get(name)
            if dim is not None and not value.shape[dim]:
                raise UsageError(
                    f"{what} holds no sample",
                    expected="at least one sample in each batch",
                    got=f"{name} of shape {list(value.shape)}",
                    fix="leave the batch out",
                )
            _check_values(what, name, value)
        found.append(dict(zip(partition.signature.inputs, leaves, strict=True)))
    return found


def _check_values(what: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return
    bad = int((~torch.isfinite(value) & (value != -torch.inf)).sum())
    if bad:
        raise UsageError(
            f"{what} holds values that are NaN or infinite",
            expected="finite inputs; minus infinity is allowed, as in a mask",
            got=f"{bad} of {value.numel()} values of {name}",
            fix="drop these samples, or replace the values",
        )


def _is_sequence(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, (str, bytes))


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
