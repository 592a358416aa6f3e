"""Parameters: each counts once, for the first block that reads it; caps hold; glue has none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch
from torch import fx

from fxelastic.errors import PartitionError
from fxelastic.ir.block import Block, BlockGraph
from fxelastic.ir.part_names import name_of
from fxelastic.ir.verify.boundaries import split_operator, unpacked
from fxelastic.ir.verify.layout import Layout, quoted


@dataclass(frozen=True)
class Weights:
    """The parameters that the graph's operators read, by identity.

    Attributes:
        by_name: Every name of a parameter. Tied parameters may have several.
        reads: For each block, identity → parameter, in order of first use.
        readers: For each block, the operators that read a parameter.
        first: Identity → index of the first block that reads it.
    """

    by_name: dict[str, torch.nn.Parameter] = field(default_factory=dict)
    reads: list[dict[int, torch.nn.Parameter]] = field(default_factory=list)
    readers: list[list[fx.Node]] = field(default_factory=list)
    first: dict[int, int] = field(default_factory=dict)


def read_weights(partition: BlockGraph, layout: Layout) -> Weights:
    """Collect the parameters that operators read, as operands or in a called module."""
    held: dict[fx.Node, list[tuple[str, torch.nn.Parameter]]] = {}
    for node in layout.nodes.values():
        if node.op in ("get_attr", "call_module"):
            held[node] = list(_parameters(partition.graph_module, str(node.target)))
    weights = Weights(reads=[{} for _ in partition.blocks], readers=[[] for _ in partition.blocks])
    for node in layout.order:
        index = layout.owner[node]
        sources = [value for value in node.all_input_nodes if value.op == "get_attr"]
        for source in (*sources, node):
            for name, parameter in held.get(source, ()):
                weights.by_name[name] = parameter
                weights.reads[index].setdefault(id(parameter), parameter)
                weights.first.setdefault(id(parameter), index)
                if node not in weights.readers[index][-1:]:
                    weights.readers[index].append(node)
    return weights


def _parameters(root: torch.nn.Module, target: str) -> Iterator[tuple[str, torch.nn.Parameter]]:
    value: object = root
    for name in target.split("."):
        value = getattr(value, name)
    if isinstance(value, torch.nn.Parameter):
        yield name_of(target), value
    elif isinstance(value, torch.nn.Module):
        yield from value.named_parameters(prefix=name_of(target), remove_duplicate=False)


_ROUNDING = 1e-9


def check_parameters(partition: BlockGraph, weights: Weights) -> None:
    """Check the parameters of every block, their number, and the cap.

    Args:
        partition: The partition.
        weights: The parameters that each block's operators read.

    Raises:
        PartitionError: A block counts parameters that it does not read first, or breaks the cap.
    """
    names: dict[int, str] = {}
    for name, parameter in weights.by_name.items():
        names.setdefault(id(parameter), name)
    for index, block in enumerate(partition.blocks):
        reads = weights.reads[index]
        own = {key: names[key] for key in reads if weights.first[key] == index}
        shared = {key: names[key] for key in reads if weights.first[key] != index}
        _check_declared(partition, index, "params", own, weights)
        _check_declared(partition, index, "shared_params", shared, weights)
        n_params = sum(reads[key].numel() for key in own)
        if block.n_params != n_params:
            raise PartitionError(
                f"block {block.name!r} has a wrong n_params",
                expected=f"{n_params}, the elements of {quoted(own.values())}",
                got=str(block.n_params),
            )
    n_params_total = sum(weights.reads[index][key].numel() for key, index in weights.first.items())
    if partition.n_params != n_params_total:
        raise PartitionError(
            "the partition's n_params is not the number of parameters that the graph reads",
            expected=str(n_params_total),
            got=str(partition.n_params),
        )
    for block in partition.blocks:
        _check_cap(block, partition.gamma * n_params_total)
    for name in partition.unused_params:
        if name in weights.by_name:
            raise PartitionError(
                f"parameter {name!r} is listed as unused",
                expected="parameters that no operator reads",
                got="a parameter that the graph reads",
            )


def _check_declared(
    partition: BlockGraph, index: int, field_name: str, actual: Mapping[int, str], weights: Weights
) -> None:
    block = partition.blocks[index]
    declared: tuple[str, ...] = getattr(block, field_name)
    listed: set[int] = set()
    for name in declared:
        if name not in weights.by_name:
            raise PartitionError(
                f"block {block.name!r} lists an unknown parameter {name!r} in {field_name}",
                expected="names of parameters that the graph reads",
                got=repr(name),
            )
        key = id(weights.by_name[name])
        if key in listed:
            raise PartitionError(
                f"block {block.name!r} lists parameter {name!r} twice in {field_name}",
                expected="each parameter once",
                got=quoted(declared),
            )
        if key not in actual:
            first = partition.blocks[weights.first[key]].name
            raise PartitionError(
                f"block {block.name!r} lists parameter {name!r} in {field_name}",
                expected=quoted(actual.values()),
                got=f"{name!r}, first read by block {first!r}"
                + ("" if key in weights.reads[index] else " and not by this one"),
            )
        listed.add(key)
    for key, name in actual.items():
        if key not in listed:
            raise PartitionError(
                f"block {block.name!r} does not list parameter {name!r} in {field_name}",
                expected=quoted(actual.values()),
                got=quoted(declared),
            )


def _check_cap(block: Block, cap: float) -> None:
    within = block.n_params <= cap * (1 + _ROUNDING)
    if block.kind == "basic" and not within:
        raise PartitionError(
            f"basic block {block.name!r} is larger than the cap",
            expected=f"at most gamma * P0 = {cap:g} parameters",
            got=str(block.n_params),
        )
    if block.kind == "oversize" and within:
        raise PartitionError(
            f"oversize block {block.name!r} is within the cap",
            expected=f"more than gamma * P0 = {cap:g} parameters, or kind 'basic'",
            got=str(block.n_params),
        )
    if block.kind == "oversize" and not block.reason:
        raise PartitionError(
            f"oversize block {block.name!r} has no reason",
            expected="a sentence with the reason why it can't be split",
            got="nothing",
        )


def check_glue(
    partition: BlockGraph, layout: Layout, stream: AbstractSet[fx.Node], weights: Weights
) -> None:
    """Check that glue has no parameters, or that a single operator makes them unavoidable.

    Such an operator reads several inputs, or other blocks read several of its results. Its block
    holds no other operator of the stream.

    Args:
        partition: The partition, after `check_boundaries`.
        layout: The order of the operators.
        stream: The values that belong to the data stream.
        weights: The parameters that each block's operators read.

    Raises:
        PartitionError: A glue block has parameters that another kind of block could hold.
    """
    for index, block in enumerate(partition.blocks):
        readers = weights.readers[index]
        if block.kind != "glue" or not readers:
            continue
        inputs = {layout.nodes[name] for name in block.inputs}
        joins = len(inputs.intersection(readers[0].all_input_nodes)) > 1
        splits = len(block.outputs) > 1 and split_operator(block, layout) is readers[0]
        others = [
            name
            for name in block.nodes
            if layout.nodes[name] in stream and unpacked(layout.nodes[name]) is not readers[0]
        ]
        if len(readers) > 1 or others or not (joins or splits) or not block.reason:
            raise PartitionError(
                f"glue block {block.name!r} has parameters",
                expected="no parameters, or a single operator that joins several inputs or has "
                "several results that others read, and a reason",
                got=f"parameters of {', '.join(repr(node.name) for node in readers)}; "
                f"{len(others)} other operators, {len(block.inputs)} inputs, "
                f"{len(block.outputs)} outputs, reason {block.reason!r}",
            )
