"""The sizes in the inputs of a call, checked against those that a model takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fxelastic.errors import UsageError
from fxelastic.spec.symbols import BATCH, Symbol, dimension


def input_sizes(
    inputs: Sequence[tuple[str, Any, Sequence[int | str]]],
    values: Sequence[Any],
    symbols: Mapping[str, Symbol],
    refuse: Callable[[int, str], UsageError],
) -> dict[str, int]:
    """Check the dtypes and shapes of a call's inputs.

    Args:
        inputs: The name, the dtype, and the sizes with expressions of each input.
        values: Arrays or tensors, in the same order.
        symbols: The symbols by name.
        refuse: Makes the error for a value, from its position and what differs: its ``dtype``, its
            ``rank`` or a fixed ``size``.

    Returns:
        The value of each symbol that follows from a size.

    Raises:
        UsageError: What ``refuse`` makes; or a size is out of its symbol's range, breaks an
            expression's rule, or two inputs have different sizes for one symbol.
    """
    shapes = []
    for i, ((name, dtype, dims), value) in enumerate(zip(inputs, values, strict=True)):
        shape = tuple(value.shape)
        if value.dtype != dtype:
            raise refuse(i, "dtype")
        if len(shape) != len(dims):
            raise refuse(i, "rank")
        for dim, size in zip(dims, shape, strict=True):
            if isinstance(dim, int) and dim != size:
                raise refuse(i, "size")
        shapes.append((name, dims, shape))
    return sizes_of(shapes, symbols)


def sizes_of(
    shapes: Sequence[tuple[str, Sequence[int | str], Sequence[int]]],
    symbols: Mapping[str, Symbol],
) -> dict[str, int]:
    """The values of symbols in the shapes of actual inputs.

    Args:
        shapes: For each input its name, its sizes with expressions, and its actual sizes. Both
            have the same rank, and equal integers.
        symbols: The symbols by name.

    Returns:
        The value of each symbol that follows from a size.

    Raises:
        UsageError: A size is out of its symbol's range, breaks an expression's rule, or two inputs
            have different sizes for one symbol.
    """
    found: dict[str, int] = {}
    source: dict[str, str] = {}
    later: list[tuple[str, int, str, int]] = []
    for name, dims, actual in shapes:
        for i, (dim, size) in enumerate(zip(dims, actual, strict=True)):
            if isinstance(dim, int):
                continue
            solved = dimension(dim).solve(size)
            if solved is None:
                later.append((name, i, dim, size))
                continue
            symbol, value = solved
            if value < 0:
                raise _breaks(name, i, dim, size, "no whole number of at least 0 gives that size")
            if found.setdefault(symbol, value) != value:
                raise _differs(symbol, source[symbol], found[symbol], name, value)
            source.setdefault(symbol, name)
            known = symbols.get(symbol)
            if known is not None and not known.holds(value):
                raise _breaks(name, i, dim, size, f"{symbol} = {value} is outside of {known}")
    for name, i, dim, size in later:
        try:
            wanted = dimension(dim).at(found)
        except ValueError:
            continue  # it also depends on sizes that no input shows
        if wanted != size:
            values = ", ".join(f"{k} = {v}" for k, v in found.items())
            raise _breaks(name, i, dim, size, f"{dim} is {wanted} for {values}")
    return found


def _breaks(name: str, i: int, dim: str, size: int, why: str) -> UsageError:
    return UsageError(
        f"dimension {i} of input {name!r} has a size that the model does not take: {why}",
        expected=dim,
        got=str(size),
        fix="pad or cut the input, or resize it",
    )


def _differs(symbol: str, one: str, first: int, other: str, second: int) -> UsageError:
    if one == other:
        where = f"input {one!r} has two sizes for {symbol}"
    elif symbol == BATCH:
        where = f"inputs {one!r} and {other!r} hold different numbers of samples"
    else:
        where = f"inputs {one!r} and {other!r} have different sizes for {symbol}"
    return UsageError(
        where,
        expected=f"the same {'batch size ' * (symbol == BATCH)}{symbol} everywhere",
        got=f"{first} in {one!r}, {second} in {other!r}",
        fix="pass as many samples in each"
        if symbol == BATCH
        else f"pass inputs that agree in {symbol}",
    )
