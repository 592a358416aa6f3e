"""Partitions written by hand, over graphs written by hand: right by inspection."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxelastic.ir import Block, Partition, Signature, SoftFusion, UntakenCut, trees
from fxelastic.ir.fusion import FusionRule, FusionRules

aten = torch.ops.aten

RULES = FusionRules(
    "test",
    (
        FusionRule("conv-bn", frozenset({"aten.conv2d"}), frozenset({"aten.batch_norm"})),
        FusionRule("bn-relu", frozenset({"aten.batch_norm"}), frozenset({"aten.relu"})),
        FusionRule("add-relu", frozenset({"aten.add"}), frozenset({"aten.relu"})),
        FusionRule(
            "linear-mul", frozenset({"aten.linear"}), frozenset({"aten.mul"}), constant_operand=True
        ),
        FusionRule("add-norm", frozenset({"aten.add"}), frozenset({"aten.layer_norm"}), soft=True),
    ),
)


class Builder:
    """Writes an fx graph over ATen operators, with values on the meta device."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.root = torch.nn.Module()

    def input(self, name: str, *shape: int) -> fx.Node:
        return self.valued(self.graph.placeholder(name), torch.empty(shape, device="meta"))

    def parameter(self, name: str, *shape: int) -> fx.Node:
        return self.hold(name, torch.nn.Parameter(torch.empty(shape, device="meta")))

    def hold(self, name: str, value: torch.Tensor | torch.nn.Module) -> fx.Node:
        setattr(self.root, name, value)
        return self.valued(self.graph.create_node("get_attr", name, name=name), value)

    def call(self, name: str, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        values = fx.map_arg((args, kwargs), lambda operand: operand.meta["val"])
        return self.valued(node, target(*values[0], **values[1]))

    def conv_bn(self, name: str, value: fx.Node, channels: int) -> fx.Node:
        weight = self.parameter(f"{name}_w", 4, channels, 3, 3)
        scale = self.parameter(f"{name}_scale", 4)
        bias = self.parameter(f"{name}_bias", 4)
        mean = self.hold(f"{name}_mean", torch.empty(4, device="meta"))
        var = self.hold(f"{name}_var", torch.empty(4, device="meta"))
        conv = self.call(f"{name}_conv", aten.conv2d.default, value, weight, None, [1, 1], [1, 1])
        norm = (scale, bias, mean, var, False, 0.1, 1e-5, False)
        return self.call(f"{name}_bn", aten.batch_norm.default, conv, *norm)

    def partition(self, results: tuple[fx.Node, ...], *blocks: Block, **fields: Any) -> Partition:
        self.graph.output(results)
        inputs = tuple(node.name for node in self.graph.nodes if node.op == "placeholder")
        signature = Signature(trees.Leaf(), trees.Leaf(), inputs, inputs)
        module = fx.GraphModule(self.root, self.graph)
        return Partition(
            module, blocks, signature=signature, fusion=RULES, **({"gamma": 0.6} | fields)
        )

    def valued(self, node: fx.Node, value: Any) -> fx.Node:
        """Say what a node's value is."""
        node.meta["val"] = value
        return node


def convolutional() -> Partition:
    """Stem, a residual branch, the joining add, and a head that reads a mask."""
    b = Builder()
    x, mask = b.input("x", 2, 3, 8, 8), b.input("mask", 2, 4, 1, 1)
    keep = b.call("keep", aten.rsub.Scalar, mask, 1)
    stem = b.call("stem_relu", aten.relu.default, b.conv_bn("stem", x, 3))
    body = b.conv_bn("body", stem, 4)
    added = b.call("join_add", aten.add.Tensor, body, stem)
    joined = b.call("join_relu", aten.relu.default, added)
    batch = b.call("batch", aten.sym_size.int, joined, 0)
    masked = b.call("masked", aten.mul.Tensor, joined, keep)
    pooled = b.call("pooled", aten.mean.dim, masked, [2, 3])
    flat = b.call("flat", aten.reshape.default, pooled, [batch, 4])
    logits = b.call("logits", aten.linear.default, flat, b.parameter("head_w", 5, 4))
    return b.partition(
        (logits,),
        Block("mask", "context", ("keep",), 0, None, "keep", ("mask",), (), ("keep",)),
        Block(
            "stem",
            "basic",
            ("stem_conv", "stem_bn", "stem_relu"),
            116,
            "x",
            "stem_relu",
            inputs=("x",),
            outputs=("stem_relu",),
            params=("stem_w", "stem_scale", "stem_bias"),
        ),
        Block(
            "body",
            "basic",
            ("body_conv", "body_bn"),
            152,
            "stem_relu",
            "body_bn",
            inputs=("stem_relu",),
            outputs=("body_bn",),
            params=("body_w", "body_scale", "body_bias"),
        ),
        Block(
            "join",
            "glue",
            ("join_add", "join_relu"),
            0,
            "body_bn",
            "join_relu",
            inputs=("body_bn", "stem_relu"),
            outputs=("join_relu",),
        ),
        Block(
            "head",
            "basic",
            ("batch", "masked", "pooled", "flat", "logits"),
            20,
            "join_relu",
            "logits",
            context=("keep",),
            inputs=("join_relu",),
            outputs=("logits",),
            params=("head_w",),
        ),
        untaken_cuts=(UntakenCut("stem_conv", "stem", "conv and bn are fused"),),
    )


def tied() -> Partition:
    """Two layers with one weight, a residual add, and the norm that a framework fuses with it."""
    b = Builder()
    x = b.input("x", 2, 6, 4)
    weight, bias = b.parameter("w", 4, 4), b.parameter("bias", 4)
    first = b.call("first", aten.linear.default, x, weight)
    added = b.call("added", aten.add.Tensor, first, x)
    normed = b.call("normed", aten.layer_norm.default, added, [4])
    second = b.call("second", aten.linear.default, normed, weight, bias)
    return b.partition(
        (second,),
        Block(
            "a",
            "oversize",
            ("first",),
            16,
            "x",
            "first",
            inputs=("x",),
            outputs=("first",),
            params=("w",),
            reason="one operator",
        ),
        Block(
            "sum",
            "glue",
            ("added",),
            0,
            "first",
            "added",
            inputs=("first", "x"),
            outputs=("added",),
        ),
        Block(
            "b",
            "basic",
            ("normed", "second"),
            4,
            "added",
            "second",
            inputs=("added",),
            outputs=("second",),
            params=("bias",),
            shared_params=("w",),
        ),
        soft_fusions=(SoftFusion("add-norm", "added", "normed", "the add is glue"),),
    )


def gated() -> Partition:
    """A multi-output operator inside a block, and an operator with parameters that joins two."""
    b = Builder()
    x = b.input("x", 2, 8)
    wide = b.call("wide", aten.linear.default, x, b.parameter("w", 8, 8))
    parts = b.call("parts", aten.chunk.default, wide, 2, 1)
    left = b.call("left", operator.getitem, parts, 0)
    right = b.call("right", operator.getitem, parts, 1)
    product = b.call("product", aten.mul.Tensor, left, right)
    narrow = b.call("narrow", aten.linear.default, product, b.parameter("v", 4, 4))
    both = b.call("both", aten.bilinear.default, product, narrow, b.parameter("u", 2, 4, 4))
    return b.partition(
        (both,),
        Block(
            "gate",
            "basic",
            ("wide", "parts", "left", "right", "product"),
            64,
            "x",
            "product",
            inputs=("x",),
            outputs=("product",),
            params=("w",),
        ),
        Block(
            "narrow",
            "basic",
            ("narrow",),
            16,
            "product",
            "narrow",
            inputs=("product",),
            outputs=("narrow",),
            params=("v",),
        ),
        Block(
            "both",
            "glue",
            ("both",),
            32,
            "product",
            "both",
            inputs=("product", "narrow"),
            outputs=("both",),
            params=("u",),
            reason="one operator with parameters joins two streams",
        ),
    )


def relative_bias() -> Partition:
    """A table looked up once for all layers, which depends on parameters and on no input."""
    b = Builder()
    x = b.input("x", 2, 4)
    index = b.hold("index", torch.zeros(4, dtype=torch.long, device="meta"))
    table = b.call("table", aten.embedding.default, b.parameter("t", 3, 4), index)
    first = b.call("first", aten.linear.default, x, b.parameter("w", 4, 4))
    biased = b.call("biased", aten.matmul.default, first, table)
    return b.partition(
        (biased,),
        Block("bias", "context", ("table",), 12, None, "table", outputs=("table",), params=("t",)),
        Block(
            "layer",
            "basic",
            ("first", "biased"),
            16,
            "x",
            "biased",
            context=("table",),
            inputs=("x",),
            outputs=("biased",),
            params=("w",),
        ),
    )
