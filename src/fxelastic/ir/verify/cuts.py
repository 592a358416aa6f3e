"""Cuts: none separates a fused pair, and each untaken cut is in the block that it names."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import torch
from torch import fx

from fxelastic.errors import PartitionError
from fxelastic.ir.block import BlockGraph, SoftFusion
from fxelastic.ir.fusion import FusionRules
from fxelastic.ir.verify.layout import Layout


def check_fusion(partition: BlockGraph, layout: Layout) -> None:
    """Check that the partition lists exactly the fused pairs that a boundary separates.

    The framework fuses a pair if a rule matches it and the producer's value has no other reader. A
    boundary may separate a pair of a soft rule or at a glue block, but no other pair.

    Raises:
        PartitionError: A pair is separated and not listed, or listed and not separated.
    """
    for fusion in partition.soft_fusions:
        _check_listed(partition, layout, fusion)
    listed = {(fusion.producer, fusion.consumer) for fusion in partition.soft_fusions}
    constants = _constants(layout)
    for producer in layout.order:
        if len(producer.users) != 1:
            continue
        consumer = next(iter(producer.users))
        source, reader = layout.owner[producer], layout.owner.get(consumer)
        if reader is None or source == reader:
            continue
        rule = partition.fusion.match(
            _operator(producer),
            _operator(consumer),
            _others_constant(producer, consumer, constants),
        )
        if rule is not None:
            where = f"blocks {partition.blocks[source].name!r} | {partition.blocks[reader].name!r}"
            kinds = (partition.blocks[source].kind, partition.blocks[reader].kind)
            allowed = rule.soft or {"glue", "context"}.intersection(kinds)
            if allowed and (producer.name, consumer.name) in listed:
                continue
            raise PartitionError(
                f"{where} separate {producer.name!r} and {consumer.name!r}, which the framework "
                f"fuses (rule {rule.name!r})",
                expected="the pair listed in soft_fusions" if allowed else "both in one block",
                got=f"{_operator(producer)} | {_operator(consumer)}, not listed",
            )


def _check_listed(partition: BlockGraph, layout: Layout, fusion: SoftFusion) -> None:
    producer, consumer = layout.nodes[fusion.producer], layout.nodes[fusion.consumer]
    pair = f"soft fusion {fusion.rule!r} of {fusion.producer!r} and {fusion.consumer!r}"
    if not fusion.reason:
        raise PartitionError(
            f"{pair} has no reason", expected="a sentence with the reason", got="nothing"
        )
    rules = [rule for rule in partition.fusion.rules if rule.name == fusion.rule]
    rule = FusionRules(partition.fusion.name, tuple(rules)).match(
        _operator(producer), _operator(consumer), other_is_constant=True
    )
    if rule is None:
        raise PartitionError(
            f"{pair} does not fall under that rule",
            expected=f"a rule of {partition.fusion.name!r} that matches the pair",
            got=f"{_operator(producer)} | {_operator(consumer)}",
        )
    source, reader = layout.owner.get(producer), layout.owner.get(consumer)
    if consumer not in producer.users or source is None or reader is None or source == reader:
        raise PartitionError(
            f"{pair} is listed, but no boundary separates the pair",
            expected="a value that one block computes and another reads",
            got="both in one block" if source == reader else "no edge between two blocks",
        )


def _operator(node: fx.Node) -> str:
    """The operator's name in the rules, or the node's target if it has none."""
    if isinstance(node.target, torch._ops.OpOverload):
        return f"{node.target.namespace}.{node.target._opname}"
    return str(node.target)


def _constants(layout: Layout) -> AbstractSet[fx.Node]:
    """Values that are the same in every call: weights, and values computed from them alone.

    A size is not a constant, even if it depends on an input's shape alone.
    """
    found = {node for node in layout.nodes.values() if node.op == "get_attr"}
    for node in layout.order:
        if found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _others_constant(producer: fx.Node, consumer: fx.Node, constants: AbstractSet[fx.Node]) -> bool:
    """Whether the producer's value is the consumer's only operand that is not a constant."""
    others: list[fx.Node] = []

    def visit(operand: fx.Node) -> fx.Node:
        others.append(operand)
        return operand

    fx.map_arg((consumer.args, consumer.kwargs), visit)
    others.remove(producer)
    return all(other in constants for other in others)


def check_untaken_cuts(partition: BlockGraph, layout: Layout) -> None:
    """Check the partition's notes on cuts that it did not take.

    Raises:
        PartitionError: A cut is not in the block that it names, or has no reason.
    """
    for cut in partition.untaken_cuts:
        owner = layout.owner.get(layout.nodes[cut.value])
        if owner is None or partition.blocks[owner].name != cut.block:
            raise PartitionError(
                f"the untaken cut at {cut.value!r} is not in block {cut.block!r}",
                expected="a value that the block computes",
                got="a value of no block"
                if owner is None
                else f"a value of block {partition.blocks[owner].name!r}",
            )
        if not cut.reason:
            raise PartitionError(
                f"the untaken cut at {cut.value!r} in block {cut.block!r} has no reason",
                expected="a sentence with the reason",
                got="nothing",
            )
