"""The dimensions that the user asks to vary, besides the batch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.export import Dim
from torch.export import dynamic_shapes as torch_shapes

from fxelastic.errors import UsageError, listed
from fxelastic.ir import trees
from fxelastic.spec.symbols import BATCH, SYMBOL_NAME, Symbol

#: Names of a size that say that it counts samples.
BATCH_NAMES = ("batch", "batch_size", BATCH)


@dataclass(frozen=True)
class DynamicDim:
    """A dimension of an input: ``factor * symbol + offset``."""

    symbol: str
    factor: int = 1
    offset: int = 0

    def at(self, size: int) -> int:
        """The dimension's size for a value of the symbol."""
        return self.factor * size + self.offset

    def __str__(self) -> str:
        text = self.symbol if self.factor == 1 else f"{self.factor}*{self.symbol}"
        return f"{text}{self.offset:+d}" if self.offset else text


@dataclass(frozen=True)
class SizeSum:
    """A dimension of an input that is the sum of others: ``past + new``."""

    symbols: tuple[str, ...]
    offset: int = 0

    def at(self, sizes: Mapping[str, int]) -> int:
        """The dimension's size for values of the symbols."""
        return sum(sizes[name] for name in self.symbols) + self.offset

    def __str__(self) -> str:
        return " + ".join((*self.symbols, *([str(self.offset)] if self.offset else [])))


@dataclass(frozen=True)
class DynamicShapes:
    """Which dimensions of the inputs vary.

    Attributes:
        dims: For each flat input, its dimensions that vary.
        symbols: Their symbols by name, the batch first if there is one.
        batch: Name of the symbol that counts samples; empty if none does.
        optional: Symbols that may be fixed with a warning, since the user asked for
            ``Dim.AUTO``. The batch is optional, too.
        static: Dimensions that must not vary, as (input, dimension).
        sums: For some inputs, by position, their dimensions that are sums of symbols.
        from_zero: Symbols that the user gives no smallest value of 1 or more.
        hints: Symbols that the user leaves to torch, by ``Dim.AUTO`` or ``Dim.DYNAMIC``.
        elsewhere: Whether the capture is traced at other sizes than the example's, since the model
            treats the example's unlike others: it may resize a table of positions to all others.
    """

    dims: tuple[Mapping[int, DynamicDim], ...]
    symbols: Mapping[str, Symbol] = field(default_factory=dict)
    batch: str = ""
    optional: frozenset[str] = frozenset()
    static: frozenset[tuple[int, int]] = frozenset()
    sums: Mapping[int, Mapping[int, SizeSum]] = field(default_factory=dict)
    from_zero: frozenset[str] = frozenset()
    hints: frozenset[str] = frozenset()
    elsewhere: bool = False

    @property
    def batch_dims(self) -> dict[int, int]:
        """The dimension of the samples, by the positions of the inputs that hold some."""
        return self._dims_of(self.batch)

    @property
    def whole(self) -> frozenset[int]:
        """Positions of the inputs that hold no samples, since the user fixes dimension 0."""
        return frozenset(i for i, dim in self.static if dim == 0) - self.named_batch.keys()

    @property
    def batch_name(self) -> str:
        """The name by which the user calls a size a batch; empty if there is none."""
        return next((name for name in BATCH_NAMES if name in self.symbols), "")

    @property
    def named_batch(self) -> dict[int, int]:
        """The dimensions that the user calls a batch, by the positions of the inputs."""
        return self._dims_of(self.batch_name)

    def _dims_of(self, symbol: str) -> dict[int, int]:
        """The first dimension of each input that has a symbol."""
        found: dict[int, int] = {}
        for i, dims in enumerate(self.dims):
            for dim in sorted(dims):
                if symbol and dims[dim].symbol == symbol:
                    found.setdefault(i, dim)
        return found

    @property
    def example(self) -> dict[str, int]:
        """The symbols' values in the example inputs."""
        return {name: symbol.example for name, symbol in self.symbols.items()}

    def traced_sizes(self) -> dict[str, int]:
        """Sizes for a capture: the example's, but none that torch takes for a constant."""
        sizes = {name: symbol.traced for name, symbol in self.symbols.items()}
        if self.elsewhere:
            others = [symbol for name, symbol in self.symbols.items() if name != self.batch]
            sizes |= {s.name: _far(s, times) for times, s in enumerate(others, 2)}
        return sizes

    def without(self, symbol: str) -> DynamicShapes:
        """The same without a symbol, whose dimensions keep the example's sizes."""
        return replace(
            self,
            dims=tuple(
                {i: dim for i, dim in dims.items() if dim.symbol != symbol} for dims in self.dims
            ),
            symbols={name: s for name, s in self.symbols.items() if name != symbol},
            batch="" if self.batch == symbol else self.batch,
            sums={
                i: {dim: _without(size, self.symbols[symbol]) for dim, size in dims.items()}
                for i, dims in self.sums.items()
            },
        )

    def _without_hint(self, dims: Mapping[int, DynamicDim], at: int) -> dict[int, DynamicDim]:
        """The dimensions of an input without one that the user leaves to torch."""
        return {i: dim for i, dim in dims.items() if i != at or dim.symbol not in self.hints}

    def with_batch(self, where: Mapping[int, int], n_samples: int) -> DynamicShapes:
        """The same with a batch.

        The batch has the name that the user gives to one of its dimensions, and takes all
        dimensions of this name.

        Args:
            where: Its dimension, by the positions of the inputs.
            n_samples: Its size in the example.

        Raises:
            UsageError: The user's dimensions contradict it.
        """
        where = {i: dim for i, dim in where.items() if (i, dim) not in self.static}
        if not where:
            return self
        own = (self.dims[i][dim].symbol for i, dim in where.items() if dim in self.dims[i])
        given = dict.fromkeys(symbol for symbol in own if symbol not in self.hints)
        name = next(iter(given), BATCH)
        if name == BATCH and BATCH in self.symbols and BATCH not in given:
            raise UsageError(
                f"dynamic_shapes uses the name {BATCH!r}, which stands for the batch size",
                expected=f"another name, or {BATCH!r} in the dimension of the samples",
                got=repr(BATCH),
            )
        dims = [
            {where[i]: DynamicDim(name), **self._without_hint(dims, where[i])}
            if i in where
            else dims
            for i, dims in enumerate(self.dims)
        ]
        used = {size.symbol for own_dims in dims for size in own_dims.values()}
        batch = self.symbols.get(name, Symbol(name, n_samples))
        others = {key: s for key, s in self.symbols.items() if key != name and key in used}
        return replace(
            self,
            dims=tuple(dims),
            symbols={name: batch, **others},
            batch=name,
            optional=self.optional if name in self.symbols else self.optional | {name},
        )


def _without(size: SizeSum, symbol: Symbol) -> SizeSum:
    """A sum in which a symbol keeps the example's size."""
    left = tuple(name for name in size.symbols if name != symbol.name)
    n_dropped = len(size.symbols) - len(left)
    return SizeSum(left, size.offset + n_dropped * symbol.example)


def _far(symbol: Symbol, times: int) -> int:
    """A size far from the example's, larger if the range allows it."""
    size = symbol.large(times)
    if size != symbol.example:
        return size
    return symbol.aligned(max(symbol.min, symbol.example // times, 2 * symbol.step))


def no_dynamic_shapes(n_inputs: int) -> DynamicShapes:
    """No dimension varies."""
    return DynamicShapes(tuple({} for _ in range(n_inputs)))


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


def replace_symbol(shapes: DynamicShapes, symbol: Symbol) -> DynamicShapes:
    """The same with other facts about a symbol of that name."""
    return replace(shapes, symbols={**shapes.symbols, symbol.name: symbol})


def resized(leaves: Sequence[Any], shapes: DynamicShapes, sizes: Mapping[str, int]) -> list[Any]:
    """Inputs of other sizes: rows of the example are repeated in turn, or dropped.

    Args:
        leaves: The flat example inputs.
        shapes: Which dimensions vary.
        sizes: Values of symbols; those without an entry keep the example's.
    """
    result = list(leaves)
    for i, dims in enumerate(shapes.dims):
        leaf = leaves[i]
        for dim, size in dims.items():
            if size.symbol not in sizes:
                continue
            n = size.at(sizes[size.symbol])
            leaf = _of_length(leaf, dim, n)
        for dim, total in shapes.sums.get(i, {}).items():
            leaf = _of_length(leaf, dim, total.at({**shapes.example, **sizes}))
        if leaf is not leaves[i]:
            result[i] = leaf.requires_grad_(leaves[i].requires_grad)
    return result


def _of_length(leaf: torch.Tensor, dim: int, n: int) -> torch.Tensor:
    """A tensor with another size in one dimension."""
    if n == leaf.shape[dim]:
        return leaf
    if not leaf.shape[dim]:
        shape = list(leaf.shape)
        shape[dim] = n
        return leaf.new_zeros(shape)
    index = torch.arange(n, device=leaf.device) % leaf.shape[dim]
    return leaf.detach().index_select(dim, index)
