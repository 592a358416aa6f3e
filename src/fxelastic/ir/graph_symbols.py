"""The symbols of a captured graph's sizes, by the names that the user knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from fxelastic.spec.symbols import Symbol


@dataclass(frozen=True)
class GraphSymbol:
    """A symbol, and what it is in the graph.

    Attributes:
        symbol: Its name, range and example.
        variable: torch's symbol in the sizes of the graph's values.
        expression: That symbol as an expression of the user's, such as ``H/32``.
        is_batch: Whether it counts samples.
    """

    symbol: Symbol
    variable: sympy.Symbol
    expression: sympy.Expr
    is_batch: bool = False

    def value(self, size: int) -> int:
        """The value of torch's symbol for a size."""
        own = next(iter(self.expression.free_symbols))
        return int(self.expression.subs(own, size))


def named(symbols: Sequence[GraphSymbol]) -> dict[Any, Any]:
    """The expressions of the user's symbols, by torch's symbols."""
    return {s.variable: s.expression for s in symbols}


def shape_in_words(value: torch.Tensor, known: Mapping[Any, Any]) -> tuple[int | str, ...]:
    """The shape of a captured value: integers, and expressions of the user's symbols as texts.

    Args:
        value: A fake tensor.
        known: Expressions by torch's symbols, from `named`.
    """
    shape: Sequence[Any] = value.shape
    return tuple(_in_words(size, known) for size in shape)


def _in_words(size: Any, known: Mapping[Any, Any]) -> int | str:
    if not isinstance(size, torch.SymInt):
        return int(size)
    # A size that export found to be fixed is a SymInt with a constant expression.
    expression = size.node.expr.xreplace(known)
    return int(expression) if expression.is_number else str(expression).replace(" ", "")


def size_at(size: Any, numbers: Mapping[Any, int]) -> int:
    """A size of a captured value.

    Args:
        size: An integer or a symbolic size.
        numbers: Values of torch's symbols; 1 for those without an entry.
    """
    if not isinstance(size, torch.SymInt):
        return int(size)
    # Not subs, which replaces one after another and may divide by zero on the way.
    expression = size.node.expr
    return int(
        expression.xreplace({s: sympy.Integer(numbers.get(s, 1)) for s in expression.free_symbols})
    )


def batch_dim(value: Any, symbols: Sequence[GraphSymbol]) -> int | None:
    """The dimension of the samples in a captured value: the first that depends on their number.

    Returns:
        None if no size depends on it.
    """
    variables = {s.variable for s in symbols if s.is_batch}
    shape: Sequence[Any] = value.shape if isinstance(value, torch.Tensor) else ()
    for dim, size in enumerate(shape):
        if isinstance(size, torch.SymInt) and variables & size.node.expr.free_symbols:
            return dim
    return None


def is_sum(total: Any, one: Any, other: Any) -> bool:
    """Whether a size is the sum of two others, whatever the symbols stand for."""
    sizes = (total, one, other)
    a, b, c = (s.node.expr if isinstance(s, torch.SymInt) else sympy.Integer(s) for s in sizes)
    return bool(sympy.expand(a - b - c) == 0)


def one_sample(symbols: Sequence[GraphSymbol]) -> dict[Any, int]:
    """Values of torch's symbols for the example's sizes, without the batch."""
    return {s.variable: s.value(s.symbol.example) for s in symbols if not s.is_batch}


def concrete_shape(
    value: torch.Tensor, symbols: Sequence[GraphSymbol], sizes: Mapping[str, int]
) -> tuple[int, ...]:
    """The shape of a captured value.

    Args:
        value: A fake tensor.
        symbols: The graph's symbols.
        sizes: Sizes by the symbols' names; the example's for those without an entry.
    """
    known = {s.variable: s.value(sizes.get(s.symbol.name, s.symbol.example)) for s in symbols}
    shape: Sequence[Any] = value.shape
    return tuple(size_at(size, known) for size in shape)
