"""Source, shape and dtype of a value, as the dumps print them.

Names of graph nodes are numbered through the whole model (``add_17``), so one more layer would
change a dump of them everywhere. Dumps name a value by the block that computes it instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fxelastic.ir.block import Block, BlockGraph
from fxelastic.ir.graph_symbols import GraphSymbol, named, shape_in_words
from fxelastic.ir.operators import is_operator, operator_name
from fxelastic.ir.part_names import name_of
from fxelastic.spec.symbols import BATCH

_WORD = re.compile(r"(?<![\w.])\w+(?![\w.]*\w)")


@dataclass(frozen=True)
class ValueType:
    """The type of one value.

    Attributes:
        dtype: ``float32``; ``number`` for a size; empty for anything else (a tuple).
        shape: Dimensions as text: literal sizes, and expressions of ``N``, the batch size, such
            as ``N`` or ``49*N``.
    """

    dtype: str
    shape: tuple[str, ...]

    def __str__(self) -> str:
        if self.dtype == "number":
            return "number"
        return f"{self.dtype or 'value'}[{', '.join(self.shape)}]"


class Values:
    """Sources and types of the values of one partition."""

    def __init__(self, partition: BlockGraph) -> None:
        """Index the partition's graph and blocks."""
        self._nodes = {node.name: node for node in partition.graph.nodes}
        self._symbols = _name_symbols(self._nodes.values(), partition.symbols)
        self._operators = {
            node.name: operator_name(node).removeprefix("aten.")
            for node in self._nodes.values()
            if is_operator(node)
        }
        self._sources: dict[str, str] = {
            name: f"input {own}"
            for name, own in zip(partition.signature.inputs, partition.signature.names, strict=True)
        }
        for block in partition.blocks:
            outputs = block_outputs(block)
            for i, name in enumerate(outputs):
                self._sources[name] = f"{block.name} output {i}" if len(outputs) > 1 else block.name

    def source(self, name: str) -> str:
        """The source of a value.

        Args:
            name: A value's name.

        Returns:
            ``input x`` for an argument of the model; a block's name, with ``output i`` if the
            block has several outputs; ``parameter layer.weight`` for a parameter or buffer.
        """
        if name in self._sources:
            return self._sources[name]
        node = self._nodes.get(name)
        if node is not None and node.op == "get_attr":
            return f"parameter {name_of(str(node.target))}"
        return f"value {name}"

    def type(self, name: str) -> ValueType:
        """The type of a value."""
        node = self._nodes.get(name)
        return self._describe(None if node is None else node.meta.get("val"))

    def reason(self, text: str) -> str:
        """A reason with each node name replaced by its operator: ``add`` for ``add_17``."""
        return _WORD.sub(lambda word: self._operators.get(word[0], word[0]), text)

    def operator(self, name: str) -> str:
        """A node's operator, short: ``conv2d``, ``getitem``, ``module:encoder.lstm``."""
        return self._operators.get(name, "?")

    def results(self) -> tuple[str, ...]:
        """Names of the model's flat results, without results that are not values."""
        for node in self._nodes.values():
            if node.op == "output":
                return tuple(operand.name for operand in _operands(node.args))
        return ()

    def _describe(self, value: Any) -> ValueType:
        if isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            return ValueType(dtype, tuple(map(str, shape_in_words(value, self._symbols))))
        if isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)):
            return ValueType("number", ())
        if isinstance(value, (tuple, list)):
            return ValueType("", tuple(str(self._describe(item)) for item in value))
        return ValueType("", ())


def stream_inputs(block: Block) -> tuple[str, ...]:
    """Names of the stream values that a block reads."""
    return block.inputs or ((block.input,) if block.input else ())


def block_outputs(block: Block) -> tuple[str, ...]:
    """Names of the values that a block computes for others."""
    return block.outputs or (block.output,)


def data_dims(value: Any) -> tuple[int, ...]:
    """Dimensions of a captured value whose size depends on data, as the rows of an expert do."""
    if not isinstance(value, torch.Tensor):
        return ()
    sizes: tuple[Any, ...] = tuple(value.shape)
    return tuple(i for i, size in enumerate(sizes) if free_unbacked_symbols(size))


def one_line(text: str) -> str:
    """Escape control characters and hide addresses, which differ between processes."""
    text = re.sub(r"\b0x[0-9a-fA-F]{6,}\b", "0x...", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _operands(arguments: Any) -> Iterator[fx.Node]:
    """The nodes in an output node's arguments, in order and with repetitions."""
    if isinstance(arguments, fx.Node):
        yield arguments
    elif isinstance(arguments, (tuple, list)):
        for argument in arguments:
            yield from _operands(argument)
    elif isinstance(arguments, dict):
        for argument in arguments.values():
            yield from _operands(argument)


def _name_symbols(nodes: Any, symbols: Sequence[GraphSymbol]) -> dict[Any, Any]:
    """Names for the symbolic sizes: the user's; ``N``, ``N1``, … for others, in graph order."""
    names = named(symbols)
    for node in nodes:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        sizes: tuple[Any, ...] = tuple(value.shape)
        for size in sizes:
            if isinstance(size, int):
                continue
            for symbol in sorted(size.node.expr.free_symbols, key=str):
                if symbol not in names:
                    name = f"N{len(names)}" if names else BATCH
                    names[symbol] = type(symbol)(name, integer=True, positive=True)
    return names
