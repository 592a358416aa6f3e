"""What a block declares at its boundaries: exactly what the graph says, and what its kind may."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from torch import fx

from fxelastic.errors import PartitionError
from fxelastic.ir.block import Block
from fxelastic.ir.verify_crossings import Crossings
from fxelastic.ir.verify_glue import split_operator
from fxelastic.ir.verify_layout import Layout

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition


def check_boundaries(
    partition: Partition, layout: Layout, crossings: Crossings, stream: AbstractSet[fx.Node]
) -> None:
    """Check the inputs, contexts and outputs of every block.

    Args:
        partition: The partition.
        layout: Where every operator stands.
        crossings: What the graph's edges say about every block.
        stream: The values that belong to the data stream.

    Raises:
        PartitionError: A block declares something else, or more than its kind may.
    """
    for index, block in enumerate(partition.blocks):
        _check_outputs(block, crossings.escapes[index], layout)
        _check_reads(block, crossings.reads[index])
        if block.kind == "context":
            _check_context(block, crossings.reads[index], stream, layout)
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
                expected=f"only its outputs ({_listed(block.outputs)}) read elsewhere",
                got=f"{name!r} read by {reader}",
            )
    for name in block.outputs:
        if name not in read:
            raise PartitionError(
                f"block {block.name!r} declares output {name!r}, which it does not give to others",
                expected=_listed(read),
                got=_listed(block.outputs),
            )
    if block.output != block.outputs[0]:
        raise PartitionError(
            f"the output of block {block.name!r} is not the first of its outputs",
            expected=repr(block.outputs[0]),
            got=repr(block.output),
        )
    splits = block.kind == "glue" and split_operator(block, layout) is not None
    if len(block.outputs) > 1 and block.kind != "context" and not splits:
        raise PartitionError(
            f"{block.kind} block {block.name!r} has several outputs",
            expected="one value that is read elsewhere",
            got=", ".join(f"{name!r} read by {reader}" for name, reader in read.items()),
        )


def _check_reads(block: Block, reads: Mapping[fx.Node, fx.Node]) -> None:
    read = {value.name: reader for value, reader in reads.items()}
    declared = dict.fromkeys((*block.inputs, *block.context))
    for name, reader in read.items():
        if name not in declared:
            raise PartitionError(
                f"block {block.name!r} reads {name!r} without declaring it",
                expected=f"inputs and context to name all of: {_listed(read)}",
                got=f"{_listed(declared)}; {name!r} is read by node {reader.name!r}",
            )
    for name in declared:
        if name not in read:
            raise PartitionError(
                f"block {block.name!r} declares {name!r}, which none of its nodes reads from "
                "outside",
                expected=_listed(read),
                got=_listed(declared),
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
            got=_listed(block.inputs),
        )


def _check_context_sources(partition: Partition, layout: Layout, block: Block) -> None:
    for name in block.context:
        source = layout.owner.get(layout.nodes[name])
        if source is not None and partition.blocks[source].kind != "context":
            raise PartitionError(
                f"block {block.name!r} reads {name!r} as a context",
                expected="an input of the model or a value that a context block computes",
                got=f"a value of {partition.blocks[source].kind} block "
                f"{partition.blocks[source].name!r}",
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
