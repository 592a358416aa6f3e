"""The dimensions that the user asks to vary, besides the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fxelastic.errors import UsageError
from fxelastic.spec.symbols import BATCH, Symbol

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
        from_zero: Symbols whose smallest value the user leaves open, or sets to 0.
        hints: Symbols that the user leaves to torch, by ``Dim.AUTO`` or ``Dim.DYNAMIC``.
        elsewhere: Whether the capture is traced at other sizes than the example's, since the model
            treats the example's unlike others: it may resize a table of positions to all others.
        scale: How many times the example's sizes, besides the batch, the capture is traced at.
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
    scale: int = 1

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
        sizes = {
            name: symbol.traced_at(1 if name == self.batch else self.scale)
            for name, symbol in self.symbols.items()
        }
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
