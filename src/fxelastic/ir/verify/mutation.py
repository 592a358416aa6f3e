"""Mutation: no operator writes to its operands, so a value never changes after its block ran."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx

from fxelastic.errors import PartitionError
from fxelastic.ir.block import BlockGraph
from fxelastic.ir.verify.layout import Layout

_WRITING_FUNCTIONS = frozenset(
    {
        operator.iadd,
        operator.iand,
        operator.ifloordiv,
        operator.ilshift,
        operator.imatmul,
        operator.imod,
        operator.imul,
        operator.ior,
        operator.ipow,
        operator.irshift,
        operator.isub,
        operator.itruediv,
        operator.ixor,
        operator.setitem,
        operator.delitem,
    }
)


def check_mutation(partition: BlockGraph, layout: Layout) -> None:
    """Check that no operator writes to a value, inside a block or at its boundary.

    Raises:
        PartitionError: An operator writes to one.
    """
    for node in layout.order:
        for value in _written(node):
            raise PartitionError(
                f"node {node.name!r} of block {partition.blocks[layout.owner[node]].name!r} "
                f"writes to {value.name!r} in place",
                expected="operators that return a new value",
                got=f"{node.name} = {node.target}",
            )


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """Operands that the operator writes to."""
    yield from _nodes(node.kwargs.get("out"))
    if node.op == "call_method":
        name = str(node.target)
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            yield from _nodes(node.args[:1])
    elif node.op == "call_function":
        if isinstance(node.target, torch._ops.OpOverload):
            yield from _written_by_schema(node, node.target._schema)
        elif node.target in _WRITING_FUNCTIONS or node.kwargs.get("inplace") is True:
            yield from _nodes(node.args[:1] or tuple(node.kwargs.values()))


def _written_by_schema(node: fx.Node, schema: torch.FunctionSchema) -> Iterator[fx.Node]:
    if not schema.is_mutable:
        return
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        if position < len(node.args):
            yield from _nodes(node.args[position])
        else:
            yield from _nodes(node.kwargs.get(argument.name))


def _nodes(argument: object) -> Iterator[fx.Node]:
    """The nodes in one argument, which may be a list."""
    if isinstance(argument, fx.Node):
        yield argument
    elif isinstance(argument, (tuple, list)):
        for item in argument:
            yield from _nodes(item)
