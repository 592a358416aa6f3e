"""Read the ``dynamic_shapes`` of a user: names, sums, and torch's ``Dim``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.export import Dim
from torch.export import dynamic_shapes as torch_shapes

from fxelastic.errors import UsageError, listed
from fxelastic.ir import trees
from fxelastic.passes.dynamic_shapes import (
    DynamicDim,
    DynamicShapes,
    SizeSum,
    no_dynamic_shapes,
)
from fxelastic.spec.symbols import SYMBOL_NAME, Symbol


def requested_shapes(
    dynamic_shapes: Any, arguments: trees.Tree, leaves: Sequence[Any]
) -> DynamicShapes:
    """Read what the user passes as ``dynamic_shapes``.

    Args:
        dynamic_shapes: A dict by the names of ``forward``'s arguments, or a sequence in their
            order. For a tensor it holds a dict from dimensions to sizes or a sequence of sizes;
            for a container of tensors, a container of the same structure; a tensor in it may also
            have an entry by its own name, such as ``past_0_1``. A size is a name, a sum
            of names such as ``"past + new"``, a ``torch.export.Dim``, ``Dim.AUTO``, ``Dim.STATIC``
            or None.
        arguments: Structure of the arguments by name.
        leaves: The flat inputs.

    Raises:
        UsageError: It names an input or a dimension that does not exist, the example is outside of
            a range, or a symbol stands for two different sizes.
    """
    paths = trees.leaf_paths(arguments)
    if dynamic_shapes is None:
        return no_dynamic_shapes(len(paths))
    names = list(dict.fromkeys(path[0] for path in paths))
    by_name = _by_name(dynamic_shapes, names, paths, leaves)
    reader = _Reader()
    for path, leaf in zip(paths, leaves, strict=True):
        reader.read(path, leaf, _entry(by_name, path))
    return reader.result()


def _by_name(
    given: Any, names: Sequence[str], paths: Sequence[tuple[str, ...]], leaves: Sequence[Any]
) -> Mapping[str, Any]:
    if isinstance(given, (tuple, list)):
        if len(given) > len(names):
            raise UsageError(
                "dynamic_shapes has more entries than the model has inputs",
                expected=f"at most {len(names)}, for {', '.join(names)}",
                got=f"{len(given)} entries",
            )
        return dict(zip(names, given, strict=False))
    if not isinstance(given, Mapping):
        raise UsageError(
            "dynamic_shapes must be a dict or a sequence",
            expected='such as {"input_ids": {0: "batch", 1: "seq"}}',
            got=type(given).__name__,
        )
    if len(leaves) == 1 and given and all(isinstance(key, int) for key in given):
        return {names[0]: given}
    known = {*names, *("_".join(path) for path in paths)}
    unknown = [key for key in given if key not in known]
    if unknown:
        raise UsageError(
            f"dynamic_shapes names {listed(map(repr, unknown))}, which the model does not take as "
            "an input",
            expected=f"names among {', '.join(names)}",
            got=", ".join(map(repr, given)),
            fix="use these names; an input without an entry keeps its shape",
        )
    return given


def _entry(by_name: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """What is given for the tensor at a path; a level that is None stands for all below it."""
    flat = "_".join(path)
    if flat in by_name:
        return by_name[flat]
    entry: Any = by_name
    for i, key in enumerate(path):
        if entry is None:
            return None
        if isinstance(entry, Mapping):
            entry = entry.get(key) if i == 0 or key in entry else entry.get(_number(key))
        elif isinstance(entry, (tuple, list)):
            position = _number(key)
            known = position is not None and position < len(entry)
            entry = entry[position] if known and position is not None else None
        else:
            entry = getattr(entry, key, None)
    return entry


def _number(key: str) -> int | None:
    return int(key) if key.isdigit() else None


class _Reader:
    """Collects the dimensions of one tensor after another."""

    def __init__(self) -> None:
        self._dims: list[dict[int, DynamicDim]] = []
        self._symbols: dict[str, Symbol] = {}
        self._source: dict[str, str] = {}
        self._ranged: dict[str, tuple[Symbol, str]] = {}
        self._optional: set[str] = set()
        self._static: set[tuple[int, int]] = set()
        self._sums: dict[int, dict[int, SizeSum]] = {}
        self._sum_sources: list[tuple[str, int, SizeSum]] = []
        self._from_one: set[str] = set()
        self._hints: set[str] = set()

    def read(self, path: tuple[str, ...], leaf: Any, entry: Any) -> None:
        """Take the entry of one tensor."""
        name, found = "_".join(path), {}
        for dim, size in _sizes(name, leaf, entry).items():
            if _hint(size) == "STATIC" or size is None or isinstance(size, int):
                self._fix(name, leaf, dim, size)
            elif isinstance(size, str) and "+" in size:
                found_sum = _sum(name, dim, size)
                self._sums.setdefault(len(self._dims), {})[dim] = found_sum
                where = f"dimension {dim} of input {name!r}"
                self._sum_sources.append((where, int(leaf.shape[dim]), found_sum))
            else:
                found[dim] = self._dimension(name, leaf, dim, size)
        self._dims.append(found)

    def result(self) -> DynamicShapes:
        """The dimensions of all tensors.

        Raises:
            UsageError: A sum names something else than the dimensions, or is wrong in the example.
        """
        for where, size, total in self._sum_sources:
            unknown = [name for name in total.symbols if name not in self._symbols]
            if unknown:
                raise UsageError(
                    f"dynamic_shapes uses {unknown[0]!r} only in the sum in {where}",
                    expected="names of other dimensions",
                    got=str(total),
                    fix=f"name the dimension of size {unknown[0]!r}, too",
                )
            wanted = total.at({name: s.example for name, s in self._symbols.items()})
            if size != wanted:
                raise UsageError(
                    f"the example's size in {where} is not {total}",
                    expected=f"{wanted}, by the other dimensions",
                    got=str(size),
                    fix="pass example inputs of such a size",
                )
        return DynamicShapes(
            tuple(self._dims),
            self._symbols,
            optional=frozenset(self._optional),
            static=frozenset(self._static),
            sums=self._sums,
            from_zero=frozenset(self._symbols) - self._from_one,
            hints=frozenset(self._hints),
        )

    def _fix(self, name: str, leaf: Any, dim: int, size: Any) -> None:
        if isinstance(size, int) and size != leaf.shape[dim]:
            raise UsageError(
                f"dynamic_shapes fixes dimension {dim} of input {name!r} to another size than the "
                "example's",
                expected=str(leaf.shape[dim]),
                got=str(size),
            )
        if size is not None:
            self._static.add((len(self._dims), dim))

    def _dimension(self, name: str, leaf: Any, dim: int, size: Any) -> DynamicDim:
        actual = int(leaf.shape[dim])
        if _hint(size):
            symbol = f"{name}_{dim}"
            while symbol in self._symbols:
                symbol += "_"
            self._hints.add(symbol)
            if _hint(size) == "AUTO":
                self._optional.add(symbol)
            found, low, high = DynamicDim(symbol), size.min, size.max
        else:
            found, low, high = _linear(name, dim, size)
        where = f"dimension {dim} of input {name!r}"
        value, rest = divmod(actual - found.offset, found.factor)
        if rest or value < 0:
            raise UsageError(
                f"the example's size in {where} is not {found} for any {found.symbol}",
                expected=str(found),
                got=str(actual),
                fix="pass example inputs of such a size",
            )
        high = None if high is None or high >= 2**31 else int(high)
        if low:
            self._from_one.add(found.symbol)
        # An example of size 0 shows that the model takes it.
        smallest = int(low or 0) if low or not value else 1
        symbol_ = Symbol(found.symbol, value, smallest, high)
        source = self._source.setdefault(found.symbol, where)
        known = self._symbols.setdefault(found.symbol, symbol_)
        if not isinstance(size, str):  # a name alone has the range that it is given elsewhere
            ranged = self._ranged.setdefault(found.symbol, (symbol_, where))
            if (ranged[0].min, ranged[0].max) != (symbol_.min, symbol_.max):
                raise UsageError(
                    f"dynamic_shapes gives {found.symbol!r} two ranges",
                    expected=f"{ranged[0]}, as in {ranged[1]}",
                    got=f"{symbol_} in {where}",
                )
            known = self._symbols[found.symbol] = replace(known, min=symbol_.min, max=symbol_.max)
        if known.example != value:
            raise UsageError(
                f"dynamic_shapes uses {found.symbol!r} for two sizes that differ in the example",
                expected=f"{found.symbol} = {known.example}, as in {source}",
                got=f"{value} in {where}",
                fix="use two names, or pass example inputs in which both are equal",
            )
        if not known.holds(value):
            raise UsageError(
                f"the example's size in {where} is outside of the range of {found.symbol!r}",
                expected=str(known),
                got=str(value),
                fix="widen the range, or pass another example",
            )
        return found


def _sizes(name: str, leaf: Any, entry: Any) -> Mapping[int, Any]:
    """The sizes given for a tensor, by dimension from 0."""
    if entry is None:
        return {}
    rank = leaf.dim() if isinstance(leaf, torch.Tensor) else 0
    if isinstance(entry, (tuple, list)):
        given: Mapping[Any, Any] = dict(enumerate(entry))
        if len(given) != rank:
            raise UsageError(
                f"dynamic_shapes gives {len(given)} sizes for input {name!r}",
                expected=f"{rank}, one for each dimension",
                got=str(len(given)),
            )
    elif isinstance(entry, Mapping):
        given = entry
    else:
        raise UsageError(
            f"dynamic_shapes for input {name!r} must be a dict from dimensions to sizes",
            expected='such as {0: "batch", 1: "seq"}',
            got=repr(entry),
        )
    for dim in given:
        if isinstance(dim, bool) or not isinstance(dim, int) or not -rank <= dim < rank:
            raise UsageError(
                f"dynamic_shapes names dimension {dim!r} of input {name!r}, which has {rank}",
                expected=f"a dimension from 0 to {rank - 1}" if rank else "no dimension",
                got=repr(dim),
            )
    return {dim % rank: size for dim, size in given.items()}


def _hint(size: Any) -> str:
    """``AUTO``, ``STATIC`` or ``DYNAMIC`` for torch's hints, else empty.

    ``DYNAMIC`` is as ``AUTO`` here, but must not be fixed.
    """
    kind = getattr(size, "type", None)
    return str(getattr(kind, "name", "")) if type(size).__name__ == "_DimHint" else ""


def _linear(name: str, dim: int, size: Any) -> tuple[DynamicDim, int, int | None]:
    """A named size as an expression, and its symbol's range."""
    if isinstance(size, str):
        if not _is_name(size):
            raise UsageError(
                f"dynamic_shapes gives dimension {dim} of input {name!r} a name that can't be one",
                expected="letters, digits and underscores, such as 'seq'",
                got=repr(size),
            )
        return DynamicDim(size), 0, None
    derived = getattr(torch_shapes, "_DerivedDim", ())
    if isinstance(size, derived):
        function, root = size.fn, size.root
        offset = int(function(0))
        return (
            DynamicDim(root.__name__, int(function(1)) - offset, offset),
            root.min,
            _bounded(root.max),
        )
    if isinstance(size, Dim):
        return DynamicDim(size.__name__), size.min, _bounded(size.max)
    raise UsageError(
        f"dynamic_shapes gives dimension {dim} of input {name!r} something that is not a size",
        expected='a name such as "seq", torch.export.Dim("seq", min=1, max=512), Dim.AUTO, '
        "Dim.STATIC or None",
        got=repr(size),
    )


def _sum(name: str, dim: int, text: str) -> SizeSum:
    """A sum of names and at most one number, such as ``past + new``."""
    terms = [term.strip() for term in text.split("+")]
    numbers = [int(term) for term in terms if term.isdecimal()]
    names = tuple(term for term in terms if not term.isdecimal())
    for term in names:
        _linear(name, dim, term)  # refuses what can't be a name
    return SizeSum(names, sum(numbers))


def _bounded(largest: Any) -> int | None:
    return largest if isinstance(largest, int) else None


def _is_name(text: str) -> bool:
    return re.fullmatch(SYMBOL_NAME, text) is not None and not text.startswith("_")
