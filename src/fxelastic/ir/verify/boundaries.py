"""Boundaries: each block declares exactly what the graph says, and no more than its kind may."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from torch import fx

from fxelastic.errors import PartitionError
from fxelastic.ir.block import Block, BlockGraph
from fxelastic.ir.verify.layout import Layout, quoted


@dataclass(frozen=True)
class Edges:
    """The values that enter and leave every block, by the graph's edges alone.

    Attributes:
        reads: For each block, value from outside → its first reader in the block. The values are
            placeholders and operators of other blocks.
        escapes: For each block, value read outside → its first reader there, in words.
    """

    reads: tuple[Mapping[fx.Node, fx.Node], ...]
    escapes: tuple[Mapping[fx.Node, str], ...]


def find_edges(partition: BlockGraph, layout: Layout) -> Edges:
    """Collect the values that cross boundaries.

    Raises:
        PartitionError: A value that crosses is a tuple or a number, or a node has no
            ``meta["val"]``.
    """
    for node in layout.nodes.values():
        if (node in layout.owner or node.op == "placeholder") and "val" not in node.meta:
            raise PartitionError(
                f"node {node.name!r} {_origin(partition, layout, node)} has no meta['val']",
                expected="a fake tensor with its shape and dtype, a tuple of them, or a number",
                got="nothing",
            )
    reads: list[dict[fx.Node, fx.Node]] = [{} for _ in partition.blocks]
    escapes: list[dict[fx.Node, str]] = [{} for _ in partition.blocks]
    for node in layout.order:
        reader = layout.owner[node]
        for value in node.all_input_nodes:
            producer = layout.owner.get(value)
            if producer == reader or value.op == "get_attr":
                continue
            where = f"node {node.name!r} of block {partition.blocks[reader].name!r}"
            if value not in reads[reader]:
                _check_crosses(partition, layout, value, where)
                reads[reader][value] = node
            if producer is not None:
                escapes[producer].setdefault(value, where)
    for value in layout.results:
        if value in layout.owner:
            if not isinstance(value.meta["val"], (int, torch.SymInt)):  # a model may return a size
                _check_crosses(partition, layout, value, "the model's result")
            escapes[layout.owner[value]].setdefault(value, "the model's result")
    return Edges(tuple(reads), tuple(escapes))


def _check_crosses(partition: BlockGraph, layout: Layout, value: fx.Node, reader: str) -> None:
    if not isinstance(value.meta["val"], torch.Tensor):
        raise PartitionError(
            f"value {value.name!r} {_origin(partition, layout, value)} crosses a boundary and is "
            "not a tensor",
            expected="one tensor",
            got=f"a {type(value.meta['val']).__name__}, read by {reader}",
            fix="keep numbers that the model takes out of tensors (.item(), float()) as tensors"
            if isinstance(value.meta["val"], (torch.SymInt, torch.SymFloat, torch.SymBool))
            else None,
        )


def _origin(partition: BlockGraph, layout: Layout, node: fx.Node) -> str:
    """The source of a value, in words."""
    if node in layout.owner:
        return f"of block {partition.blocks[layout.owner[node]].name!r}"
    return "(an input of the model)"


def check_boundaries(
    partition: BlockGraph, layout: Layout, edges: Edges, stream: AbstractSet[fx.Node]
) -> None:
    """Check the inputs, contexts and outputs of every block.

    Args:
        partition: The partition.
        layout: The order of the operators.
        edges: The values that enter and leave each block.
        stream: The values that belong to the data stream.

    Raises:
        PartitionError: A block declares other values, or more than its kind may.
    """
    for index, block in enumerate(partition.blocks):
        _check_outputs(block, edges.escapes[index], layout)
        _check_reads(block, edges.reads[index])
        if block.kind == "context":
            _check_context(block, edges.reads[index], stream, layout)
        else:
            _check_stream_block(block, stream, layout)
    for block in partition.blocks:
        _check_context_sources(partition, layout, block)


def _check_outputs(block: Block, escapes: Mapping[fx.Node, str], layout: Layout) -> None:
    read = {value.name: reader for value, reader in escapes.items()}
    if not read:
        raise PartitionError(
            f"block {block.name!r} computes nothing that is read elsewhere",
            expected="a value that another block or the model's result reads",
            got=f"output {block.output!r}, read nowhere else",
        )
    outputs = set(block.outputs)
    for name, reader in read.items():
        if name not in outputs:
            raise PartitionError(
                f"value {name!r} inside block {block.name!r} is used outside",
                expected=f"only its outputs ({quoted(block.outputs)}) read elsewhere",
                got=f"{name!r} read by {reader}",
            )
    for name in block.outputs:
        if name not in read:
            raise PartitionError(
                f"block {block.name!r} declares output {name!r}, which no other block reads",
                expected=quoted(read),
                got=quoted(block.outputs),
            )
    if block.output != block.outputs[0]:
        raise PartitionError(
            f"the output of block {block.name!r} is not the first of its outputs",
            expected=repr(block.outputs[0]),
            got=repr(block.output),
        )
    splits = block.kind == "glue" and split_operator(block, layout) is not None
    others = [name for name in block.outputs[1:] if not _extends_input(layout, name)]
    if others and block.kind != "context" and not splits:
        raise PartitionError(
            f"{block.kind} block {block.name!r} has several outputs",
            expected="one value that is read elsewhere",
            got=", ".join(f"{name!r} read by {reader}" for name, reader in read.items()),
        )


def _extends_input(layout: Layout, name: str) -> bool:
    """Whether a value is an input of the model with more behind it, and read by the result alone.

    A block may return such a value, the keys of all tokens so far, beside its own output.
    """
    value = layout.nodes[name]
    if value.target is not torch.ops.aten.cat.default or value not in layout.results:
        return False
    parts = value.args[0]
    home = layout.owner[value]
    inside = all(layout.owner.get(reader, home) == home for reader in value.users)
    return inside and isinstance(parts, (list, tuple)) and _is_input(parts[0])


def _is_input(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "placeholder"


def _check_reads(block: Block, reads: Mapping[fx.Node, fx.Node]) -> None:
    read = {value.name: reader for value, reader in reads.items()}
    declared = dict.fromkeys((*block.inputs, *block.context))
    for name, reader in read.items():
        if name not in declared:
            raise PartitionError(
                f"block {block.name!r} reads {name!r} without declaring it",
                expected=f"inputs and context to name all of: {quoted(read)}",
                got=f"{quoted(declared)}; {name!r} is read by node {reader.name!r}",
            )
    for name in declared:
        if name not in read:
            raise PartitionError(
                f"block {block.name!r} declares {name!r}, which none of its nodes reads from "
                "outside",
                expected=quoted(read),
                got=quoted(declared),
            )
    context = set(block.context)
    for name in block.inputs:
        if name in context:
            raise PartitionError(
                f"block {block.name!r} lists {name!r} both as input and as context",
                expected="one of them",
                got="both",
            )
    first = block.inputs[0] if block.inputs else None
    if block.input != first:
        raise PartitionError(
            f"the input of block {block.name!r} is not the first of its inputs",
            expected=repr(first),
            got=repr(block.input),
        )


def _check_context(
    block: Block, reads: Mapping[fx.Node, fx.Node], stream: AbstractSet[fx.Node], layout: Layout
) -> None:
    for value, reader in reads.items():
        if value in stream:
            raise PartitionError(
                f"context block {block.name!r} reads the stream value {value.name!r}",
                expected="values that depend on no input through parameters",
                got=f"{value.name!r}, read by node {reader.name!r}",
            )
    for name in block.outputs:
        if layout.nodes[name] in stream:
            raise PartitionError(
                f"context block {block.name!r} computes the stream value {name!r}",
                expected="values that depend on no input through parameters",
                got=f"{name!r}, which depends on an input and on parameters",
            )


def _check_stream_block(block: Block, stream: AbstractSet[fx.Node], layout: Layout) -> None:
    for name in block.context:
        if layout.nodes[name] in stream:
            raise PartitionError(
                f"block {block.name!r} reads the stream value {name!r} as a context",
                expected="contexts that depend on no input through parameters",
                got=f"{name!r}, which depends on an input and on parameters",
            )
    if len(block.inputs) > 1 and block.kind != "glue":
        raise PartitionError(
            f"{block.kind} block {block.name!r} has {len(block.inputs)} inputs",
            expected="at most one stream value read from outside",
            got=quoted(block.inputs),
        )


def _check_context_sources(partition: BlockGraph, layout: Layout, block: Block) -> None:
    for name in block.context:
        source = layout.owner.get(layout.nodes[name])
        if source is not None and partition.blocks[source].kind != "context":
            raise PartitionError(
                f"block {block.name!r} reads {name!r} as a context",
                expected="an input of the model or a value that a context block computes",
                got=f"a value of {partition.blocks[source].kind} block "
                f"{partition.blocks[source].name!r}",
            )


def split_operator(block: Block, layout: Layout) -> fx.Node | None:
    """The operator whose results are all of the block's outputs, or None."""
    sources = [unpacked(layout.nodes[name]) for name in block.outputs]
    return sources[0] if len(set(sources)) == 1 and sources[0].name not in block.outputs else None


def unpacked(node: fx.Node) -> fx.Node:
    """The operator whose tuple of results holds a value, or the value's own operator."""
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node
