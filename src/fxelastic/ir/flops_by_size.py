"""Floating point operations as expressions of the sizes that vary."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
import torch
from torch import fx

from fxelastic.ir.flops import count_flops
from fxelastic.ir.graph_symbols import GraphSymbol, named, size_at
from fxelastic.spec.symbols import Symbol, dimension

logger = logging.getLogger(__name__)

#: The sizes of a value for each of `FlopsBySize.tries`.
Tries = Sequence[tuple[int, ...]]

# How many sizes, besides the example's, sizes of a changed graph are recognised by, and how far
# they go, in multiples of the example's.
_OTHERS = 3
_LARGE = 4


@dataclass(frozen=True)
class FlopsBySize:
    """Writes the FLOPs of operators as an expression, for one sample.

    Attributes:
        graph: The captured graph.
        symbols: Its symbols.
    """

    graph: fx.Graph
    symbols: tuple[GraphSymbol, ...]

    def __bool__(self) -> bool:
        """Whether sizes besides the batch vary."""
        return bool(self._others)

    @property
    def _others(self) -> list[GraphSymbol]:
        return [s for s in self.symbols if not s.is_batch]

    @cached_property
    def tries(self) -> tuple[Mapping[Any, int], ...]:
        """Values of torch's symbols: for the example's sizes first, then for others.

        These are spread over the range, differently for each symbol, so that the values of a size
        show what it is, even after strides.
        """
        example = {s.variable: s.value(s.symbol.example) for s in self._others}
        spread = (
            {s.variable: s.value(_between(s.symbol, n, i)) for i, s in enumerate(self._others)}
            for n in range(1, 1 + _OTHERS)
        )
        return (example, *spread)

    def of(self, nodes: Iterable[fx.Node]) -> str:
        """The FLOPs of operators of the captured graph; empty if no size but the batch varies."""
        if not self:
            return ""
        return self._text(
            sum(count_flops(n, lambda v: list(map(self._expression, _shape(v)))) for n in nodes)
        )

    def of_changed(self, nodes: Iterable[fx.Node], shapes: Mapping[fx.Node, Tries]) -> str:
        """The FLOPs of a changed copy of operators.

        Args:
            nodes: The operators.
            shapes: The shape of each value for each of `tries`. Its sizes are recognised by their
                values: they are sizes of the captured graph, or such sizes times a constant.

        Returns:
            The expression; empty if a size is not recognised.
        """

        def shape(value: fx.Node) -> list[Any]:
            return [self._recognised(sizes) for sizes in zip(*shapes[value], strict=True)]

        try:
            return self._text(sum(count_flops(node, shape) for node in nodes))
        except ValueError as e:
            logger.debug("no expression for FLOPs: %s", e)
            return ""

    def _text(self, flops: Any) -> str:
        total = sympy.sympify(flops)
        forms = (total, sympy.factor_terms(total), sympy.expand(total))
        text = min((str(form).replace(" ", "") for form in forms), key=len)
        try:
            dimension(text).at({s.symbol.name: s.symbol.example for s in self._others})
        except ValueError as e:
            logger.debug("no expression for FLOPs: %s", e)
            return ""
        return text

    def _expression(self, size: Any) -> Any:
        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr.xreplace(named(self._others))
        names = {next(iter(s.expression.free_symbols)) for s in self._others}
        rest = {symbol: sympy.Integer(1) for symbol in expression.free_symbols - names}
        return expression.xreplace(rest)

    @cached_property
    def _known(self) -> Mapping[tuple[int, ...], Any]:
        """The sizes of the captured graph, by their values for each of ``tries``."""
        sizes = {
            str(size): size
            for node in self.graph.nodes
            for size in _shape(node)
            if isinstance(size, torch.SymInt)
        }
        found: dict[tuple[int, ...], Any] = {}
        for size in sizes.values():
            found.setdefault(tuple(size_at(size, at) for at in self.tries), self._expression(size))
        return found

    def _recognised(self, sizes: tuple[int, ...]) -> Any:
        if len(set(sizes)) == 1:
            return sizes[0]
        if sizes in self._known:
            return self._known[sizes]
        for values, expression in self._known.items():
            if all(a * values[0] == b * sizes[0] for a, b in zip(sizes, values, strict=True)):
                return expression * sizes[0] / values[0]
        raise ValueError(f"sizes {sizes} are not those of the model")


def _shape(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _between(symbol: Symbol, n: int, i: int) -> int:
    """A size in the range of the i-th symbol, at multiples of the golden ratio."""
    smallest, largest = symbol.min, symbol.large(_LARGE)
    share = (n * (math.sqrt(5) - 1) / 2 + i / math.e) % 1
    size = symbol.aligned(smallest + round(share * (largest - smallest)))
    return size if size <= largest else largest
