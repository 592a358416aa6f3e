"""What holds for every test model at every granularity."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import nn

import fxelastic
from fxelastic import Partition
from tests.models import CASES
from tests.models.captured import grouped, partitioned
from tests.models.compare import assert_same_output

GAMMAS = (0.02, 0.1, 0.25, 1.0)
#: The 133 million parameters of the real VGG-11 are run at one granularity only.
GRID = [
    grouped(name, gamma)
    for name, case in CASES.items()
    for gamma in (GAMMAS if "slow" not in case.tags else GAMMAS[1:2])
]


@lru_cache(maxsize=1)
def model(name: str) -> nn.Module:
    """A model that was never captured."""
    return CASES[name].build()


@lru_cache(maxsize=2)
def wanted(name: str, batch_size: int) -> Any:
    """What a case's model itself gives, shared by the granularities."""
    args, kwargs = CASES[name].inputs(batch_size)
    return model(name)(*args, **kwargs)


@pytest.mark.parametrize(("name", "gamma"), GRID)
def test_blocks_in_order_are_the_model(name: str, gamma: float) -> None:
    case = CASES[name]
    found = partitioned(name, gamma)
    found.verify()
    assert sum(block.n_params for block in found.blocks) == found.n_params
    for batch_size in (2, 3):
        args, kwargs = case.inputs(batch_size)
        assert_same_output(found(*args, **kwargs), wanted(name, batch_size))


@pytest.mark.parametrize(("name", "gamma"), GRID)
def test_the_cap_holds_or_a_reason_is_given(name: str, gamma: float) -> None:
    found = partitioned(name, gamma)
    for block in found.blocks:
        above = block.n_params > gamma * found.n_params * (1 + 1e-9)
        assert block.kind != "basic" or not above
        if above and block.kind in ("oversize", "glue"):
            assert block.reason


@pytest.mark.parametrize("name", [grouped(name) for name in CASES])
def test_p0_counts_each_used_parameter_once(name: str) -> None:
    found = partitioned(name, 0.25)
    unused = set(found.unused_params)
    used = {id(p): p.numel() for n, p in model(name).named_parameters() if n not in unused}
    assert found.n_params == sum(used.values())


def names(found: Partition, *kinds: str) -> list[str]:
    return [block.name for block in found.blocks if not kinds or block.kind in kinds]


@pytest.mark.xdist_group("resnet50")
def test_resnet50_has_one_block_per_bottleneck() -> None:
    layers = [f"layer{i + 1}.{j}" for i, n in enumerate((3, 4, 6, 3)) for j in range(n)]
    assert names(partitioned("resnet50", 0.25)) == ["conv1..maxpool", *layers, "avgpool..fc"]


@pytest.mark.xdist_group("mobilenet_v2")
def test_mobilenet_v2_has_one_block_per_inverted_residual() -> None:
    found = names(partitioned("mobilenet_v2", 0.25))
    assert [name for name in found if name in {f"features.{i}" for i in range(1, 18)}] == [
        f"features.{i}" for i in range(1, 18)
    ]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        grouped("vit", [f"encoder.layers.encoder_layer_{i}" for i in range(4)]),
        grouped("bert", [f"encoder.layer.{i}" for i in range(4)]),
        grouped("llama", [f"model.layers.{i}" for i in range(4)]),
        grouped("t5", [f"encoder.block.{i}" for i in range(3)]),
        grouped("functional_resnet", [f"unit{i}" for i in range(5)]),
    ],
)
def test_each_layer_is_one_block(name: str, layers: list[str]) -> None:
    found = partitioned(name, 0.25)
    assert [n for n in names(found, "basic") if n in set(layers)] == layers


@pytest.mark.xdist_group("llama")
def test_masks_and_rotary_tables_are_context() -> None:
    found = partitioned("llama", 0.25)
    context = names(found, "context")
    assert context == ["model:context"]
    readers = [block.name for block in found.blocks if block.kind == "basic" and block.context]
    assert readers == [f"model.layers.{i}" for i in range(4)]


def cuts(found: Partition, block: fxelastic.Block) -> list[str]:
    """Values at which an oversize block would fall into two blocks with parameters each."""
    nodes = {node.name: node for node in found.graph.nodes}
    inside = [nodes[name] for name in block.nodes]
    position = {node: i for i, node in enumerate(inside)}
    stream = stream_within(found, block, inside)
    result = []
    for value in stream[:-1]:
        before = ancestors(value, position)
        crossing = {
            operand
            for node in stream
            if node not in before
            for operand in node.all_input_nodes
            if operand in before and operand in stream
        }
        weights = (
            [any_weight(node) for node in before],
            [any_weight(node) for node in stream if node not in before],
        )
        outside = block.input in {
            operand.name
            for node in stream
            if node not in before
            for operand in node.all_input_nodes
        }
        if crossing == {value} and not outside and all(map(any, weights)):
            (reader, *more) = [user for user in value.users if user in position]
            rule = found.fusion.match(value.target, reader.target, constant_others(value, reader))
            if more or rule is None or rule.soft:
                result.append(value.name)
    return result


def stream_within(
    found: Partition, block: fxelastic.Block, inside: list[torch.fx.Node]
) -> list[torch.fx.Node]:
    """The block's operators that depend on its input, in order."""
    reached: set[str] = {name for name in (block.input,) if name}
    result = []
    for node in inside:
        if any(operand.name in reached for operand in node.all_input_nodes):
            reached.add(node.name)
            if isinstance(node.meta["val"], torch.Tensor):
                result.append(node)
    return result


def ancestors(value: torch.fx.Node, inside: dict[torch.fx.Node, int]) -> set[torch.fx.Node]:
    found = {value}
    pending = [value]
    while pending:
        for operand in pending.pop().all_input_nodes:
            if operand in inside and operand not in found:
                found.add(operand)
                pending.append(operand)
    return found


def any_weight(node: torch.fx.Node) -> bool:
    values = [operand for operand in node.all_input_nodes if operand.op == "get_attr"]
    return node.op == "call_module" or any(
        isinstance(
            torch.fx.graph_module._get_attr(v.graph.owning_module, v.target), torch.nn.Parameter
        )
        for v in values
    )


def constant_others(value: torch.fx.Node, reader: torch.fx.Node) -> bool:
    return all(o is value or o.op == "get_attr" for o in reader.all_input_nodes)


@pytest.mark.parametrize(("name", "gamma"), GRID)
def test_no_oversize_block_can_be_split(name: str, gamma: float) -> None:
    found = partitioned(name, gamma)
    left = {b.name: cuts(found, b) for b in found.blocks if b.kind == "oversize"}
    assert not {name: values for name, values in left.items() if values}
