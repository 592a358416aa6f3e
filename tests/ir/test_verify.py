"""The verifier passes partitions written by hand and catches each way of spoiling one."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fxelastic.errors import PartitionError
from fxelastic.ir import Block, Partition, SoftFusion
from fxelastic.ir.verify import verify
from tests.ir.corruptions import CONVOLUTIONAL, GATED, TIED
from tests.ir.hand_written import Builder, convolutional, gated, relative_bias, tied
from tests.ir.spoil import change, copy_graph, returning, split

aten = torch.ops.aten

GOOD = (convolutional, tied, gated, relative_bias)


@pytest.mark.parametrize("make", GOOD)
def test_good_partition_passes(make: Callable[[], Partition]) -> None:
    verify(make())
    make().verify()


CORRUPTIONS = [
    pytest.param(make, corrupt, message, id=f"{make.__name__}: {name}")
    for make, table in ((convolutional, CONVOLUTIONAL), (tied, TIED), (gated, GATED))
    for name, (corrupt, message) in table.items()
]


@pytest.mark.parametrize(("make", "corrupt", "message"), CORRUPTIONS)
def test_corruption_is_caught(
    make: Callable[[], Partition], corrupt: Callable[[Partition], Partition], message: str
) -> None:
    with pytest.raises(PartitionError, match=message):
        verify(corrupt(make()))


def test_copy_of_a_graph_passes_where_nothing_is_corrupted() -> None:
    """The helpers that the corruptions use leave everything else as it was."""
    verify(copy_graph(convolutional()))
    verify(split(gated(), "gate", 1, "wide", "w"))


def test_listed_hard_fusion_at_glue_passes() -> None:
    corrupt, _ = CONVOLUTIONAL["add | relu cut at glue, unlisted"]
    listed = SoftFusion("add-relu", "join_add", "join_relu", "the add is glue")
    verify(replace(corrupt(convolutional()), soft_fusions=(listed,)))


def test_producer_with_two_readers_may_be_cut() -> None:
    cut = split(convolutional(), "body", 1, "body_conv", "body_w")
    verify(returning(cut, "logits", "body_conv"))


def _scaled(operand: str) -> Partition:
    """A linear layer and, in the next block, the product of its value with something."""
    b = Builder()
    x = b.input("x", 2, 4)
    linear = b.call("linear", aten.linear.default, x, b.parameter("w", 4, 4))
    nodes: tuple[str, ...] = ("product",)
    context: tuple[str, ...] = ()
    if operand == "itself":
        other = linear
    elif operand == "an input":
        other, context = b.input("scale", 4), ("scale",)
    else:
        other = b.hold("scale", torch.empty(4, device="meta"))
        if operand == "computed from a weight":
            other, nodes = b.call("double", aten.add.Tensor, other, other), ("double", "product")
    product = b.call("product", aten.mul.Tensor, linear, other)
    return b.partition(
        (product,),
        Block("a", "basic", ("linear",), 16, "x", "linear", (), ("x",), ("linear",), params=("w",)),
        Block("b", "basic", nodes, 0, "linear", "product", context, ("linear",), ("product",)),
        gamma=1.0,
    )


@pytest.mark.parametrize("operand", ["a weight", "computed from a weight"])
def test_rule_for_constant_operands_matches(operand: str) -> None:
    with pytest.raises(PartitionError, match="rule 'linear-mul'"):
        verify(_scaled(operand))


@pytest.mark.parametrize("operand", ["itself", "an input"])
def test_rule_for_constant_operands_does_not_match(operand: str) -> None:
    verify(_scaled(operand))


def test_tied_parameters_under_two_names_count_once() -> None:
    b = Builder()
    x, weight = b.input("x", 2, 4), torch.nn.Parameter(torch.empty(4, 4, device="meta"))
    first = b.call("first", aten.linear.default, x, b.hold("v", weight))
    second = b.call("second", aten.linear.default, first, b.hold("w", weight))
    blocks = (
        Block("a", "basic", ("first",), 16, "x", "first", (), ("x",), ("first",), params=("v",)),
        Block(
            "b",
            "basic",
            ("second",),
            0,
            "first",
            "second",
            inputs=("first",),
            outputs=("second",),
            shared_params=("w",),
        ),
    )
    partition = b.partition((second,), *blocks, gamma=1.0)
    verify(partition)
    verify(change(partition, "b", shared_params=("v",)))
    with pytest.raises(PartitionError, match="'b' lists parameter 'w' in params"):
        verify(change(partition, "b", n_params=16, params=("w",), shared_params=()))


def test_opaque_module_counts_its_parameters() -> None:
    b = Builder()
    x = b.input("x", 2, 4)
    b.root.add_module("cell", torch.nn.Linear(4, 4, device="meta"))
    node = b.valued(b.graph.call_module("cell", (x,)), torch.empty(2, 4, device="meta"))
    block = Block(
        "cell",
        "basic",
        (node.name,),
        20,
        "x",
        node.name,
        inputs=("x",),
        outputs=(node.name,),
        params=("cell.weight", "cell.bias"),
    )
    partition = b.partition((node,), block, gamma=1.0)
    verify(partition)
    with pytest.raises(PartitionError, match=r"'cell' does not list parameter 'cell\.bias'"):
        verify(change(partition, "cell", n_params=16, params=("cell.weight",)))
    with pytest.raises(PartitionError, match="computes the stream value"):
        verify(change(partition, "cell", kind="context"))


def test_sizes_carry_no_dependence() -> None:
    """A position table as long as the input is a context, though its length is read from it."""
    b = Builder()
    x = b.input("x", 3, 4)
    length = b.call("length", aten.sym_size.int, x, 0)
    steps = b.call("steps", aten.arange.default, length, device=torch.device("meta"))
    table = b.call("table", aten.embedding.default, b.parameter("t", 9, 4), steps)
    summed = b.call("summed", aten.add.Tensor, x, table)
    result = b.call("result", aten.linear.default, summed, b.parameter("w", 8, 4))
    positions = Block(
        "positions",
        "context",
        ("length", "steps", "table"),
        36,
        None,
        "table",
        context=("x",),
        outputs=("table",),
        params=("t",),
    )
    layer = Block(
        "layer",
        "basic",
        ("summed", "result"),
        32,
        "x",
        "result",
        context=("table",),
        inputs=("x",),
        outputs=("result",),
        params=("w",),
    )
    verify(b.partition((result,), positions, layer))


def _chain(n_nodes: int) -> Partition:
    b = Builder()
    value = b.input("x", 2, 4)
    weight = b.parameter("w", 4, 4)
    blocks = []
    for index in range(n_nodes // 2):
        source = value.name
        linear = b.call(f"linear_{index}", aten.linear.default, value, weight)
        value = b.call(f"relu_{index}", aten.tanh.default, linear)
        blocks.append(
            Block(
                f"layer{index}",
                "basic",
                (linear.name, value.name),
                0 if index else 16,
                source,
                value.name,
                inputs=(source,),
                outputs=(value.name,),
                params=() if index else ("w",),
                shared_params=("w",) if index else (),
            )
        )
    return b.partition((value,), *blocks, gamma=1.0)


def test_work_is_linear_in_the_graph() -> None:
    """Counted in function calls, which no other process disturbs."""

    def calls(n_nodes: int) -> int:
        partition = _chain(n_nodes)
        n = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal n
            n += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            verify(partition)
        finally:
            sys.setprofile(None)
        return n

    assert calls(8000) <= 10 * calls(1000)


def _recurrent() -> Partition:
    """A recurrent layer whose two results go different ways: nothing but glue can hold it."""
    b = Builder()
    x, start = b.input("x", 3, 2, 4), b.hold("start", torch.empty(1, 2, 4, device="meta"))
    weights = [b.parameter("w", 12, 4), b.parameter("u", 12, 4)]
    flags = (False, 1, 0.0, False, False, False)
    gru = b.call("gru", aten.gru.input, x, start, weights, *flags)
    steps, last = (b.call(f"result_{i}", operator.getitem, gru, i) for i in range(2))
    head = b.call("head", aten.linear.default, steps, b.parameter("v", 4, 4))
    return b.partition(
        (head, last),
        Block(
            "rnn",
            "glue",
            ("gru", "result_0", "result_1"),
            96,
            "x",
            "result_0",
            inputs=("x",),
            outputs=("result_0", "result_1"),
            params=("w", "u"),
            reason="the results of gru go different ways",
        ),
        Block(
            "head",
            "basic",
            ("head",),
            16,
            "result_0",
            "head",
            inputs=("result_0",),
            outputs=("head",),
            params=("v",),
        ),
    )


def test_one_operator_whose_results_go_different_ways_is_glue() -> None:
    partition = _recurrent()
    verify(partition)
    with pytest.raises(PartitionError, match="oversize block 'rnn' has several outputs"):
        verify(change(partition, "rnn", kind="oversize"))
    with pytest.raises(PartitionError, match="glue block 'rnn' has parameters"):
        verify(change(partition, "rnn", reason=""))


def test_operator_with_one_result_is_no_glue() -> None:
    partition = returning(_recurrent(), "head")
    with pytest.raises(PartitionError, match="glue block 'rnn' has parameters"):
        verify(change(partition, "rnn", outputs=("result_0",)))
    verify(change(partition, "rnn", outputs=("result_0",), kind="oversize"))


def test_glue_with_parameters_holds_no_other_operator() -> None:
    partition = _recurrent()
    nodes = {node.name: node for node in partition.graph.nodes}
    with partition.graph.inserting_after(nodes["result_1"]):
        extra = partition.graph.call_function(aten.relu.default, (nodes["result_0"],))
    extra.meta["val"] = nodes["result_0"].meta["val"]
    nodes["head"].replace_input_with(nodes["result_0"], extra)
    grown = change(
        partition,
        "rnn",
        nodes=("gru", "result_0", "result_1", extra.name),
        output=extra.name,
        outputs=(extra.name, "result_1"),
    )
    grown = change(grown, "head", input=extra.name, inputs=(extra.name,))
    with pytest.raises(PartitionError, match="glue block 'rnn' has several outputs"):
        verify(grown)
