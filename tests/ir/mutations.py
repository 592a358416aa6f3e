"""Every way to spoil a partition that needs no knowledge of the model it was made from.

A mutation yields spoiled copies of a partition, none if it does not apply, and says by which
message each must be caught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fxelastic.ir import Block, Partition
from tests.ir.spoil import change, retarget, swap, without_value

aten = torch.ops.aten

Mutation = Callable[[Partition], Iterator[Partition]]

#: In-place forms of operators that models have.
IN_PLACE = {
    aten.relu.default: aten.relu_.default,
    aten.add.Tensor: aten.add_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
}


def _each(
    partition: Partition, applies: Callable[[Block], bool], **fields: Callable[[Block], Any]
) -> Iterator[Partition]:
    """One copy for each block that it applies to, with these fields changed."""
    for block in partition.blocks:
        if applies(block):
            changed = {name: make(block) for name, make in fields.items()}
            yield change(partition, block.name, **changed)


def _nodes(partition: Partition) -> dict[str, fx.Node]:
    return {node.name: node for node in partition.graph.nodes}


def _cut(partition: Partition, index: int, at: int) -> Partition:
    """Cut a block after ``at`` nodes and declare both parts' boundaries and parameters."""
    block, nodes = partition.blocks[index], _nodes(partition)
    counted: set[str] = set()
    halves = []
    for i, part in enumerate((block.nodes[:at], block.nodes[at:])):
        operands = [operand for name in part for operand in nodes[name].all_input_nodes]
        weights = {str(operand.target) for operand in operands if operand.op == "get_attr"}
        reads = dict.fromkeys(
            operand.name
            for operand in operands
            if operand.op != "get_attr" and operand.name not in part
        )
        outputs = tuple(
            name for name in part if any(user.name not in part for user in nodes[name].users)
        )
        inputs = tuple(name for name in reads if name not in block.context)
        params = tuple(name for name in block.params if name in weights - counted)
        counted |= weights
        count = sum(partition.graph_module.get_parameter(name).numel() for name in params)
        within = count <= partition.max_block_params and block.kind == "oversize"
        halves.append(
            replace(
                block,
                name=f"{block.name}/{i}",
                kind="basic" if within else block.kind,
                nodes=part,
                n_params=count,
                input=inputs[0] if inputs else None,
                inputs=inputs,
                output=outputs[0],
                outputs=outputs,
                context=tuple(name for name in reads if name in block.context),
                params=params,
                shared_params=tuple(
                    name
                    for name in (*block.params, *block.shared_params)
                    if name in weights and name not in params
                ),
            )
        )
    blocks = (*partition.blocks[:index], *halves, *partition.blocks[index + 1 :])
    return replace(partition, blocks=blocks, untaken_cuts=())


def missing_node(p: Partition) -> Iterator[Partition]:
    yield from _each(p, lambda b: len(b.nodes) > 1, nodes=lambda b: b.nodes[:-1])
    yield from _each(p, lambda b: len(b.nodes) > 1, nodes=lambda b: b.nodes[1:])


def node_twice(p: Partition) -> Iterator[Partition]:
    first = p.blocks[0].nodes[0]
    yield from _each(p, lambda b: True, nodes=lambda b: (*b.nodes, first))


def unknown_node(p: Partition) -> Iterator[Partition]:
    yield from _each(p, lambda b: True, nodes=lambda b: (*b.nodes, "ghost"))


def empty_block(p: Partition) -> Iterator[Partition]:
    yield from _each(p, lambda b: True, nodes=lambda b: ())


def duplicate_name(p: Partition) -> Iterator[Partition]:
    first = p.blocks[0].name
    yield from _each(p, lambda b: b.name != first, name=lambda b: first)


def nodes_reversed(p: Partition) -> Iterator[Partition]:
    nodes = _nodes(p)
    for block in p.blocks:
        if any(o.name in block.nodes for n in block.nodes for o in nodes[n].all_input_nodes):
            yield change(p, block.name, nodes=block.nodes[::-1])


def blocks_swapped(p: Partition) -> Iterator[Partition]:
    for i in range(len(p.blocks) - 1):
        if p.blocks[i].output in (*p.blocks[i + 1].inputs, *p.blocks[i + 1].context):
            yield swap(p, i, i + 1)


def node_moved(p: Partition) -> Iterator[Partition]:
    for left, right in zip(p.blocks, p.blocks[1:], strict=False):
        if len(left.nodes) > 1 and left.output in (*right.inputs, *right.context):
            shorter = change(p, left.name, nodes=left.nodes[:-1])
            yield change(shorter, right.name, nodes=(left.nodes[-1], *right.nodes))


def in_place_operator(p: Partition) -> Iterator[Partition]:
    for node in p.graph.nodes:
        if node.target in IN_PLACE and node.args[0].op != "get_attr":
            yield retarget(p, node.name, IN_PLACE[node.target])


def no_value(p: Partition) -> Iterator[Partition]:
    for block in p.blocks:
        yield without_value(p, block.output)


def wrong_output(p: Partition) -> Iterator[Partition]:
    yield from _each(
        p,
        lambda b: len(b.nodes) > 1 and b.nodes[0] not in b.outputs,
        output=lambda b: b.nodes[0],
        outputs=lambda b: b.nodes[:1],
    )


def extra_output(p: Partition) -> Iterator[Partition]:
    yield from _each(
        p,
        lambda b: len(b.nodes) > 1 and b.nodes[0] not in b.outputs,
        outputs=lambda b: (*b.outputs, b.nodes[0]),
    )


def undeclared_input(p: Partition) -> Iterator[Partition]:
    yield from _each(p, lambda b: len(b.inputs) > 1, inputs=lambda b: b.inputs[:-1])
    yield from _each(p, lambda b: bool(b.context), context=lambda b: b.context[1:])


def wrong_input(p: Partition) -> Iterator[Partition]:
    yield from _each(p, lambda b: len(b.inputs) > 1, input=lambda b: b.inputs[-1])
    yield from _each(p, lambda b: b.input is not None, input=lambda b: None)


def joining_glue_called_basic(p: Partition) -> Iterator[Partition]:
    yield from _each(p, lambda b: b.kind == "glue" and len(b.inputs) > 1, kind=lambda b: "basic")


def second_input(p: Partition) -> Iterator[Partition]:
    yield from _each(
        p,
        lambda b: b.kind in ("basic", "oversize") and bool(b.inputs) and bool(b.context),
        inputs=lambda b: (*b.inputs, b.context[0]),
        context=lambda b: b.context[1:],
    )


def stream_as_context(p: Partition) -> Iterator[Partition]:
    behind = {b.output for b in p.blocks if b.kind in ("basic", "oversize") and b.params}
    yield from _each(
        p,
        lambda b: len(b.inputs) == 1 and b.input in behind,
        input=lambda b: None,
        inputs=lambda b: (),
        context=lambda b: (*b.inputs, *b.context),
    )


def wrong_n_params(p: Partition) -> Iterator[Partition]:
    yield from _each(p, lambda b: True, n_params=lambda b: b.n_params + 1)


def missing_parameter(p: Partition) -> Iterator[Partition]:
    yield from _each(p, lambda b: bool(b.params), params=lambda b: b.params[1:])
    yield from _each(p, lambda b: bool(b.shared_params), shared_params=lambda b: ())


def foreign_parameter(p: Partition) -> Iterator[Partition]:
    owner = next(b for b in p.blocks if b.params)
    yield from _each(p, lambda b: b is not owner, params=lambda b: (*b.params, owner.params[0]))


def shared_counted_twice(p: Partition) -> Iterator[Partition]:
    yield from _each(
        p,
        lambda b: bool(b.shared_params),
        params=lambda b: (*b.params, *b.shared_params),
        shared_params=lambda b: (),
    )


def cap_broken(p: Partition) -> Iterator[Partition]:
    largest = max((b.n_params for b in p.blocks if b.kind == "basic"), default=0)
    if largest:
        yield replace(p, gamma=0.99 * largest / p.n_params)


def oversize_called_basic(p: Partition) -> Iterator[Partition]:
    yield from _each(p, lambda b: b.kind == "oversize", kind=lambda b: "basic")


def basic_called_oversize(p: Partition) -> Iterator[Partition]:
    yield from _each(
        p, lambda b: b.kind == "basic", kind=lambda b: "oversize", reason=lambda b: "because"
    )


def no_reason(p: Partition) -> Iterator[Partition]:
    yield from _each(p, lambda b: b.kind == "oversize", reason=lambda b: "")


def parameters_called_glue(p: Partition) -> Iterator[Partition]:
    yield from _each(
        p,
        lambda b: b.kind != "glue" and len(b.inputs) == 1 and bool(b.params),
        kind=lambda b: "glue",
        reason=lambda b: "because",
    )


def stream_called_context(p: Partition) -> Iterator[Partition]:
    yield from _each(
        p, lambda b: b.kind in ("basic", "oversize") and bool(b.params), kind=lambda b: "context"
    )


def unlisted_fusion(p: Partition) -> Iterator[Partition]:
    for fusion in p.soft_fusions:
        rest = tuple(other for other in p.soft_fusions if other is not fusion)
        yield replace(p, soft_fusions=rest)


def cut_between_conv_and_norm(p: Partition) -> Iterator[Partition]:
    nodes = _nodes(p)
    for index, block in enumerate(p.blocks):
        for at in range(1, len(block.nodes)):
            left, right = nodes[block.nodes[at - 1]], nodes[block.nodes[at]]
            if left.target is aten.conv2d.default and right.target is aten.batch_norm.default:
                cut = _cut(p, index, at)
                if len(cut.blocks[index].outputs) == len(cut.blocks[index + 1].inputs) == 1:
                    yield cut


def merged_above_the_cap(p: Partition) -> Iterator[Partition]:
    for index, (left, right) in enumerate(zip(p.blocks, p.blocks[1:], strict=False)):
        readers = [b for b in p.blocks if left.output in (*b.inputs, *b.context)]
        n_params = left.n_params + right.n_params
        if (
            {left.kind, right.kind} <= {"basic", "oversize"}
            and readers == [right]
            and right.inputs == left.outputs
            and n_params > p.max_block_params
        ):
            merged = replace(
                right,
                kind="basic",
                nodes=left.nodes + right.nodes,
                n_params=n_params,
                input=left.input,
                inputs=left.inputs,
                context=tuple(dict.fromkeys(left.context + right.context)),
                params=left.params + right.params,
                shared_params=tuple(
                    name
                    for name in dict.fromkeys(left.shared_params + right.shared_params)
                    if name not in left.params
                ),
            )
            blocks = (*p.blocks[:index], merged, *p.blocks[index + 2 :])
            yield replace(p, blocks=blocks, untaken_cuts=())


def value_that_is_no_tensor_crosses(p: Partition) -> Iterator[Partition]:
    nodes = _nodes(p)
    for index, block in enumerate(p.blocks):
        for at in range(1, len(block.nodes)):
            last, rest = nodes[block.nodes[at - 1]], block.nodes[at:]
            tensor = isinstance(last.meta["val"], torch.Tensor)
            if not tensor and any(user.name in rest for user in last.users):
                yield _cut(p, index, at)


#: Mutation → the message that catches it.
MUTATIONS: dict[Mutation, str] = {
    missing_node: "is in no block",
    node_twice: "is in two places",
    unknown_node: "unknown node 'ghost'",
    empty_block: "is empty",
    duplicate_name: "two blocks are named",
    nodes_reversed: "comes before its operand",
    blocks_swapped: "comes before its operand",
    node_moved: "is not in block|used outside|no other block reads|not a tensor",
    in_place_operator: "writes to",
    no_value: r"has no meta\['val'\]",
    wrong_output: "used outside",
    extra_output: "declares output",
    undeclared_input: "without declaring it",
    wrong_input: "is not the first of its inputs",
    joining_glue_called_basic: r"has \d+ inputs",
    second_input: "has 2 inputs",
    stream_as_context: "reads the stream value .* as a context",
    wrong_n_params: "wrong n_params",
    missing_parameter: "does not list parameter",
    foreign_parameter: "lists parameter",
    shared_counted_twice: "lists parameter .* in params",
    cap_broken: "larger than the cap",
    oversize_called_basic: "larger than the cap",
    basic_called_oversize: "within the cap",
    no_reason: "has no reason",
    parameters_called_glue: "has parameters",
    stream_called_context: "(computes|reads) the stream value",
    unlisted_fusion: "separate .* which the framework fuses",
    cut_between_conv_and_norm: "which the framework fuses .rule 'conv-bn'",
    merged_above_the_cap: "larger than the cap",
    value_that_is_no_tensor_crosses: "crosses a boundary and is not a tensor",
}
