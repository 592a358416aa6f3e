"""Parameters: each counted once, by the first block that reads it, and within the cap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fxelastic.errors import PartitionError
from fxelastic.ir.block import Block
from fxelastic.ir.verify_weights import Weights

if TYPE_CHECKING:
    from fxelastic.ir.partition import Partition

_ROUNDING = 1e-9


def check_parameters(partition: Partition, weights: Weights) -> None:
    """Check the parameters of every block, their number, and the cap.

    Args:
        partition: The partition.
        weights: The parameters that each block's operators read.

    Raises:
        PartitionError: A block counts something else than it reads first, or breaks the cap.
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
                expected=f"{n_params}, the elements of {_listed(own.values())}",
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
                f"parameter {name!r} is called unused",
                expected="parameters that no operator reads",
                got="a parameter that the graph reads",
            )


def _check_declared(
    partition: Partition, index: int, field_name: str, actual: Mapping[int, str], weights: Weights
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
