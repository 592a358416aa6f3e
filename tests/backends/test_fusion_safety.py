"""No boundary of a partition costs an onnxruntime kernel, beyond the fusions it lists.

The whole graph and its blocks are optimised by onnxruntime, and their kernels compared. Where the
multisets are equal, no kernel spans a boundary.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import fx

from fxelastic.backends.onnxruntime.kernels import (
    KernelDiff,
    compare_kernels,
    export_each,
    optimised_kernels,
)
from fxelastic.backends.onnxruntime.pieces import Piece, templates
from fxelastic.ir import Block, Partition, Traced
from fxelastic.ir.fusion import canonical_operator
from fxelastic.ir.partition import extract
from tests.models import CASES
from tests.models.captured import captured, grouped, partitioned

# Convolutional models that this test leaves out, and why.
LEFT_OUT = {
    "odd_pooling": "the exporter has no adaptive_max_pool2d",
    "vgg11": "vgg11_small has the same operators",
}

CONVOLUTIONAL = [
    grouped(name) for name, case in CASES.items() if "conv" in case.tags and name not in LEFT_OUT
]

# Small blocks, where regions are opened and every fusable pair is a candidate for a cut.
FINE = ("resnet18", "vgg11_small", "squeezenet", "resnext_grouped", "film")

Difference = tuple[dict[str, int], dict[str, int]]
"""Kernels lost by cutting and added by it."""

TRANSFORMER_GAMMAS = (0.25, 0.02)

# A layout is no fusion: seeing all of ConvNeXt's first stage, onnxruntime runs it channels-last
# from the norm before it to the norm after it, which saves two transpositions. No two neighbouring
# blocks show it.
LAYOUT: dict[str, Difference] = {"convnext": ({}, {"Transpose": 2})}

# All other convolutional models run the kernels of the whole, without exception.
EXCUSED = ("convnext", "film")

# What a boundary inside each soft fusion may lose and add, at most.
COSTS: dict[str, Difference] = {
    "add-layer-norm": (
        {"com.microsoft.SkipLayerNormalization": 1},
        # The second addition is a bias that SkipLayerNormalization takes too.
        {"LayerNormalization": 1, "Add": 2},
    ),
    "matmul-add": ({"Gemm": 1}, {"MatMul": 1, "Add": 1}),
    "scale-matmul": (
        {"com.microsoft.FusedMatMul": 1},
        {"MatMul": 1, "Mul": 1, "Div": 1},
    ),
    "transpose-matmul": ({"com.microsoft.FusedMatMul": 1}, {"MatMul": 1, "Transpose": 1}),
}


class Values(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        super().__init__(module)
        self.values: dict[str, Any] = {}
        with torch.no_grad():
            self.run(*inputs)

    def run_node(self, node: fx.Node) -> Any:
        """Run one node."""
        self.values[node.name] = super().run_node(node)
        return self.values[node.name]


def traced_with_inputs(name: str) -> tuple[Traced, list[Any]]:
    """A model's graph and its inputs."""
    traced = captured(name).traced
    return traced, traced.signature.flatten_arguments(*CASES[name].inputs(2))


@lru_cache(maxsize=1)
def diffs(
    name: str, gammas: tuple[float, ...], dynamic_batch: bool = False
) -> list[tuple[Partition, KernelDiff]]:
    """Compare the kernels of a model with those of its blocks, for each γ.

    A symbolic batch makes the export twice as slow. It changes no fusion:
    `test_dynamic_batch_is_as_safe` compares one model, and `test_export_sweep.py` three more as
    they are exported.
    """
    traced, inputs = traced_with_inputs(name)
    partitions = [partitioned(name, gamma) for gamma in gammas]
    pieces = [whole_piece(traced.graph_module, inputs)]
    for partition in partitions:
        values = Values(partition.graph_module, inputs).values
        pieces += [piece(partition, block, values) for block in partition.blocks]
    whole, *rest = kernels(pieces, dynamic_batch)
    result = []
    for partition in partitions:
        parts, rest = rest[: len(partition.blocks)], rest[len(partition.blocks) :]
        result.append((partition, compare_kernels(whole, parts)))
    return result


def whole_piece(module: fx.GraphModule, inputs: Sequence[Any]) -> Piece:
    """A model as a module to convert."""
    return Piece("whole", module, (), ("result",), tuple(inputs), ())


def piece(partition: Partition, block: Block, values: Mapping[str, Any]) -> Piece:
    """A block as a module to convert."""
    names = (*block.inputs, *block.context)
    operands = tuple(values[name] for name in names)
    return Piece(block.name, extract(partition, block), names, block.outputs, operands, ())


def kernels(pieces: Sequence[Piece], dynamic_batch: bool) -> list[Counter[str]]:
    """The kernels of each piece; those that differ in their weights alone have the same."""
    groups = templates(pieces)
    firsts = [(group.first.module, group.first.examples) for group in groups]
    models = export_each(firsts, dynamic_batch)
    found = {
        id(piece): counted
        for group, counted in zip(groups, map(optimised_kernels, models), strict=True)
        for piece in group.pieces
    }
    return [found[id(piece)] for piece in pieces]


def unexplained(partition: Partition, diff: KernelDiff) -> tuple[Counter[str], Counter[str]]:
    """What was lost and added beyond what the listed soft fusions account for."""
    lost, extra = Counter(diff.lost), Counter(diff.extra)
    for fusion in partition.soft_fusions:
        may_lose, may_add = COSTS.get(fusion.rule, ({}, {}))
        lost -= Counter(may_lose)
        extra -= Counter(may_add)
    return lost, extra


def slices(name: str, partition: Partition) -> Difference:
    """What it costs that the parts of a split go to different blocks, each of which takes its own.

    Two Slices copy what one Split does; the value has two readers, so this is no fusion.
    """
    count = [
        Counter(canonical_operator(node.target) for node in graph.nodes)
        for graph in (captured(name).traced.graph, partition.graph)
    ]
    splits = sum(count[0][kind] - count[1][kind] for kind in ("aten.chunk", "aten.split"))
    added = count[1]["aten.slice"] - count[0]["aten.slice"]
    return ({"Split": splits}, {"Slice": added}) if splits else ({}, {})


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_blocks_of_a_convolutional_model_run_the_kernels_of_the_whole(name: str) -> None:
    for partition, diff in diffs(name, (0.25, 0.1, 0.02) if name in FINE else (0.25,)):
        expected = LAYOUT.get(name) or slices(name, partition)
        assert name in EXCUSED or expected == ({}, {})
        assert (diff.lost, diff.extra) == expected, (
            f"{name} at γ={partition.gamma}, {len(partition.blocks)} blocks: {diff}"
        )


@pytest.mark.parametrize("name", [grouped("bert"), grouped("vit")])
def test_a_transformer_loses_no_fusion_that_is_not_listed(name: str) -> None:
    for partition, diff in diffs(name, TRANSFORMER_GAMMAS):
        assert unexplained(partition, diff) == (Counter(), Counter()), (
            f"{name} at γ={partition.gamma}: {diff}; listed: {partition.soft_fusions}"
        )


@pytest.mark.xdist_group("vit")
def test_a_fusion_that_is_not_listed_fails() -> None:
    """The comparison above must fail when a listed fusion is taken from the list."""
    partition, diff = diffs("vit", TRANSFORMER_GAMMAS)[0]
    assert not diff.equal
    assert partition.soft_fusions
    lost, extra = unexplained(dataclasses.replace(partition, soft_fusions=()), diff)
    assert lost
    assert extra


@pytest.mark.xdist_group("resnext_grouped")
def test_dynamic_batch_is_as_safe() -> None:
    ((_, diff),) = diffs("resnext_grouped", (0.25,), dynamic_batch=True)
    assert diff.equal, str(diff)


@pytest.mark.xdist_group("resnet18")
@pytest.mark.parametrize(
    ("producer", "consumer", "kernel"),
    [("conv2d", "batch_norm", "BatchNormalization"), ("batch_norm", "relu", "Relu")],
)
def test_a_bad_cut_fails(producer: str, consumer: str, kernel: str) -> None:
    """The comparison above must fail for a boundary between conv and bn, or bn and relu."""
    _, inputs = traced_with_inputs("resnet18")
    partition = partitioned("resnet18", 0.25)
    nodes = {node.name: node for node in partition.graph.nodes}
    stem = partition.blocks[0]
    position = [canonical_operator(nodes[name].target) for name in stem.nodes].index(
        f"aten.{producer}"
    )
    boundary = stem.nodes[position]
    (reader,) = nodes[boundary].users
    assert canonical_operator(reader.target) == f"aten.{consumer}"
    head = dataclasses.replace(
        stem, nodes=stem.nodes[: position + 1], output=boundary, outputs=(boundary,)
    )
    tail = dataclasses.replace(
        stem, nodes=stem.nodes[position + 1 :], input=boundary, inputs=(boundary,)
    )
    spoiled = dataclasses.replace(partition, blocks=(head, tail, *partition.blocks[1:]))
    values = Values(partition.graph_module, inputs).values
    pieces = [piece(partition, stem, values)]
    pieces += [piece(spoiled, block, values) for block in (head, tail)]
    whole, *parts = kernels(pieces, dynamic_batch=False)
    diff = compare_kernels(whole, parts)
    assert not diff.equal
    assert diff.lost == {"com.microsoft.FusedConv[Relu]": 1}
    assert diff.extra[kernel] == 1
    assert partition.fusion.match(f"aten.{producer}", f"aten.{consumer}", True) is not None
