"""Parameters: each counted once, by the first block that reads it, and within the cap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import fx

from fxelastic.errors import PartitionError
from fxelastic.ir.block import Block
from fxelastic.ir.verify_dependence import split_operator
from fxelastic.ir.verify_layout import Layout

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition

_ROUNDING = 1e-9


@dataclass(frozen=True)
class _Weights:
    """The parameters that the graph's operators read, told apart by identity.

    Attributes:
        by_name: Every name by which one is read. Tied parameters may have several.
        reads: For each block, identity → parameter, in order of first use.
        readers: For each block, the operators that read one.
        first: Identity → index of the first block that reads it.
    """

    by_name: dict[str, torch.nn.Parameter] = field(default_factory=dict)
    reads: list[dict[int, torch.nn.Parameter]] = field(default_factory=list)
    readers: list[list[fx.Node]] = field(default_factory=list)
    first: dict[int, int] = field(default_factory=dict)


def check_parameters(partition: Partition, layout: Layout) -> None:
    """Check the parameters of every block, their number, and the cap.

    Raises:
        PartitionError: A block counts something else than it reads first, or breaks the cap.
    """
    weights = _read_weights(partition, layout)
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
                expected=f"{n_params}, the elements of {_listed(own.values())}",
                got=str(block.n_params),
            )
        if block.kind == "glue" and reads:
            _check_glue(block, layout, [names[key] for key in reads], weights.readers[index])
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
                f"parameter {name!r} is called unused",
                expected="parameters that no operator reads",
                got="a parameter that the graph reads",
            )


def _read_weights(partition: Partition, layout: Layout) -> _Weights:
    held: dict[fx.Node, list[tuple[str, torch.nn.Parameter]]] = {}
    for node in layout.nodes.values():
        if node.op in ("get_attr", "call_module"):
            held[node] = list(_parameters(partition.graph_module, str(node.target)))
    weights = _Weights(reads=[{} for _ in partition.blocks], readers=[[] for _ in partition.blocks])
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
        yield target, value
    elif isinstance(value, torch.nn.Module):
        yield from value.named_parameters(prefix=target, remove_duplicate=False)


def _check_declared(
    partition: Partition, index: int, field_name: str, actual: Mapping[int, str], weights: _Weights
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
                got=_listed(declared),
            )
        if key not in actual:
            first = partition.blocks[weights.first[key]].name
            raise PartitionError(
                f"block {block.name!r} lists parameter {name!r} in {field_name}",
                expected=_listed(actual.values()),
                got=f"{name!r}, first read by block {first!r}"
                + ("" if key in weights.reads[index] else " and not by this one"),
            )
        listed.add(key)
    for key, name in actual.items():
        if key not in listed:
            raise PartitionError(
                f"block {block.name!r} does not list parameter {name!r} in {field_name}",
                expected=_listed(actual.values()),
                got=_listed(declared),
            )


def _check_glue(block: Block, layout: Layout, names: list[str], readers: list[fx.Node]) -> None:
    inputs = {layout.nodes[name] for name in block.inputs}
    alone = len(readers) == 1 and (
        len(inputs.intersection(readers[0].all_input_nodes)) > 1
        or split_operator(block, layout) is readers[0]
    )
    if not alone or not block.reason:
        raise PartitionError(
            f"glue block {block.name!r} has parameters",
            expected="no parameters, or one single operator that joins several inputs or whose "
            "results go different ways, and a reason that says so",
            got=f"{_listed(names)} in {len(readers)} operators with {len(block.inputs)} "
            f"inputs, reason {block.reason!r}",
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
            expected="a sentence that says why it cannot be split",
            got="nothing",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
