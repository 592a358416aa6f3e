"""Ways of spoiling the partitions of ``hand_written``, and the message that each must raise.

Each breaks one invariant and keeps the others as far as it can, so that its own message comes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace

import torch

from fxelastic.ir import Partition, SoftFusion, UntakenCut
from tests.ir.spoil import change, retarget, returning, split, swap, without_value

aten = torch.ops.aten

Corruption = tuple[Callable[[Partition], Partition], str]

CONVOLUTIONAL: dict[str, Corruption] = {
    "gamma of zero": (lambda p: replace(p, gamma=0.0), "gamma is not a share"),
    "gamma above one": (lambda p: replace(p, gamma=1.5), "gamma is not a share"),
    "duplicate block name": (lambda p: change(p, "body", name="stem"), "two blocks .*'stem'"),
    "unknown kind": (lambda p: change(p, "body", kind="odd"), "'body' has an unknown kind"),
    "empty block": (lambda p: change(p, "body", nodes=()), "'body' is empty"),
    "unknown node": (
        lambda p: change(p, "body", nodes=("body_conv", "body_bn", "ghost")),
        "unknown node 'ghost' .*'body'",
    ),
    "unknown input": (lambda p: change(p, "body", input="ghost"), "unknown node 'ghost'"),
    "unknown untaken cut": (
        lambda p: replace(p, untaken_cuts=(UntakenCut("ghost", "stem", "because"),)),
        "unknown node 'ghost'",
    ),
    "untaken cut in no block": (
        lambda p: replace(p, untaken_cuts=(UntakenCut("stem_conv", "ghost", "because"),)),
        "unknown block",
    ),
    "untaken cut without reason": (
        lambda p: replace(p, untaken_cuts=(UntakenCut("stem_conv", "stem", ""),)),
        "untaken cut at 'stem_conv'.* no reason",
    ),
    "untaken cut of another block": (
        lambda p: replace(p, untaken_cuts=(UntakenCut("stem_conv", "body", "because"),)),
        "untaken cut at 'stem_conv' .*'body'",
    ),
    "signature of other inputs": (
        lambda p: replace(p, signature=replace(p.signature, inputs=("x",))),
        "signature does not name",
    ),
    "signature of too many names": (
        lambda p: replace(p, signature=replace(p.signature, names=("x", "y", "z"))),
        "a unique name",
    ),
    "missing node": (
        lambda p: change(p, "stem", nodes=("stem_conv", "stem_bn")),
        "'stem_relu' is in no block",
    ),
    "node twice": (
        lambda p: change(p, "body", nodes=("stem_relu", "body_conv", "body_bn")),
        "'stem_relu' is in two places(.|\n)*'stem'(.|\n)*'body'",
    ),
    "placeholder in a block": (
        lambda p: change(p, "stem", nodes=("x", "stem_conv", "stem_bn", "stem_relu")),
        "'x', which is not an operator",
    ),
    "parameter in a block": (
        lambda p: change(p, "stem", nodes=("stem_w", "stem_conv", "stem_bn", "stem_relu")),
        "'stem_w', which is not an operator",
    ),
    "order of nodes broken": (
        lambda p: change(p, "body", nodes=("body_bn", "body_conv")),
        "'body_bn' of block 'body' comes before its operand 'body_conv'",
    ),
    "order of blocks broken": (
        lambda p: swap(p, 1, 2),
        "'body_conv' of block 'body' comes before its operand 'stem_relu'",
    ),
    "in-place operator": (
        lambda p: retarget(p, "join_relu", aten.relu_.default),
        "'join_relu' of block 'join' writes to 'join_add'",
    ),
    "mutated boundary": (
        lambda p: retarget(p, "join_add", aten.add_.Tensor),
        "'join_add' of block 'join' writes to 'body_bn'",
    ),
    "in-place method": (
        lambda p: retarget(p, "masked", "mul_", "call_method"),
        "'masked' of block 'head' writes to 'join_relu'",
    ),
    "in-place function": (
        lambda p: retarget(p, "masked", operator.imul),
        "'masked' of block 'head' writes to 'join_relu'",
    ),
    "node without a value": (lambda p: without_value(p, "body_bn"), r"'body_bn'.*no meta\['val'\]"),
    "number crosses": (
        lambda p: change(
            change(p, "join", nodes=("join_add", "join_relu", "batch")),
            "head",
            nodes=("masked", "pooled", "flat", "logits"),
        ),
        "'batch' of block 'join' crosses a boundary and is not a tensor(.|\n)*int",
    ),
    "interior value used outside": (
        lambda p: change(
            change(p, "stem", nodes=("stem_conv", "stem_bn", "stem_relu", "body_conv")),
            "body",
            nodes=("body_bn",),
        ),
        "'body_conv' inside block 'stem' is used outside(.|\n)*'body_bn'",
    ),
    "wrong output": (
        lambda p: change(p, "body", output="body_conv"),
        "output of block 'body' is not the first",
    ),
    "output that nobody reads": (
        lambda p: change(p, "body", outputs=("body_bn", "body_conv")),
        "'body' declares output 'body_conv'",
    ),
    "two outputs": (
        lambda p: change(
            change(
                returning(p, "logits", "body_bn"),
                "body",
                nodes=("body_conv", "body_bn", "join_add"),
                output="join_add",
                outputs=("join_add", "body_bn"),
            ),
            "join",
            nodes=("join_relu",),
        ),
        "basic block 'body' has several outputs",
    ),
    "two inputs": (
        lambda p: change(p, "join", kind="basic"),
        "basic block 'join' has 2 inputs(.|\n)*'body_bn', 'stem_relu'",
    ),
    "undeclared input": (
        lambda p: change(p, "join", inputs=("body_bn",)),
        "'join' reads 'stem_relu' without declaring it",
    ),
    "input that it does not read": (
        lambda p: change(p, "body", inputs=("stem_relu", "x")),
        "'body' declares 'x', which none of its nodes reads",
    ),
    "input and context": (
        lambda p: change(p, "head", context=("keep", "join_relu")),
        "'join_relu' both as input and as context",
    ),
    "wrong input": (
        lambda p: change(p, "join", input="stem_relu"),
        "input of block 'join' is not the first",
    ),
    "no input": (lambda p: change(p, "body", input=None), "input of block 'body' is not the first"),
    "stream read as context": (
        lambda p: change(p, "body", input=None, inputs=(), context=("stem_relu",)),
        "'body' reads the stream value 'stem_relu' as a context",
    ),
    "stream read by glue as context": (
        lambda p: change(p, "join", inputs=("body_bn",), context=("stem_relu",)),
        "'join' reads the stream value 'stem_relu' as a context",
    ),
    "context block reads the stream": (
        lambda p: change(p, "join", kind="context"),
        "context block 'join' reads the stream value 'body_bn'",
    ),
    "context block computes the stream": (
        lambda p: change(p, "stem", kind="context"),
        "context block 'stem' computes the stream value 'stem_relu'",
    ),
    "context of a basic block": (
        lambda p: change(p, "mask", kind="basic", input="mask", inputs=("mask",), context=()),
        "'head' reads 'keep' as a context(.|\n)*basic block 'mask'",
    ),
    "wrong n_params": (lambda p: change(p, "body", n_params=151), "'body' has a wrong n_params"),
    "parameter missing": (
        lambda p: change(p, "body", params=("body_w", "body_scale")),
        "'body' does not list parameter 'body_bias' in params",
    ),
    "parameter of another block": (
        lambda p: change(p, "head", params=("head_w", "body_w")),
        "'head' lists parameter 'body_w' in params(.|\n)*'body' and not by this one",
    ),
    "unknown parameter": (
        lambda p: change(p, "head", params=("ghost",)),
        "'head' lists an unknown parameter 'ghost'",
    ),
    "parameter twice": (
        lambda p: change(p, "head", params=("head_w", "head_w")),
        "'head' lists parameter 'head_w' twice",
    ),
    "used parameter called unused": (
        lambda p: replace(p, unused_params=("head_w",)),
        "'head_w' is listed as unused",
    ),
    "cap broken": (lambda p: replace(p, gamma=0.5), "basic block 'body' is larger than the cap"),
    "oversize below the cap": (
        lambda p: change(p, "body", kind="oversize", reason="because"),
        "oversize block 'body' is within the cap",
    ),
    "oversize without reason": (
        lambda p: replace(change(p, "body", kind="oversize"), gamma=0.5),
        "oversize block 'body' has no reason",
    ),
    "glue with parameters": (
        lambda p: change(p, "stem", kind="glue", reason="because"),
        "glue block 'stem' has parameters",
    ),
    "conv | bn cut": (
        lambda p: split(p, "body", 1, "body_conv", "body_w"),
        "'body0' \\| 'body1' separate 'body_conv' and 'body_bn'.*rule 'conv-bn'",
    ),
    "bn | relu cut": (
        lambda p: split(p, "stem", 2, "stem_bn", "stem_w", "stem_scale", "stem_bias"),
        "separate 'stem_bn' and 'stem_relu'.*rule 'bn-relu'",
    ),
    "add | relu cut at glue, unlisted": (
        lambda p: replace(
            p,
            blocks=(
                *p.blocks[:3],
                replace(p.blocks[3], nodes=("join_add",), output="join_add", outputs=("join_add",)),
                replace(
                    p.blocks[4],
                    nodes=("join_relu", *p.blocks[4].nodes),
                    input="join_add",
                    inputs=("join_add",),
                ),
            ),
        ),
        "separate 'join_add' and 'join_relu'(.|\n)*listed in soft_fusions",
    ),
}

TIED: dict[str, Corruption] = {
    "shared parameter counted twice": (
        lambda p: change(p, "b", params=("bias", "w"), n_params=20),
        "'b' lists parameter 'w' in params(.|\n)*first read by block 'a'",
    ),
    "shared parameter not listed": (
        lambda p: change(p, "b", shared_params=()),
        "'b' does not list parameter 'w' in shared_params",
    ),
    "own parameter listed as shared": (
        lambda p: change(p, "a", params=(), shared_params=("w",), n_params=0),
        "'a' does not list parameter 'w' in params",
    ),
    "unlisted soft fusion": (
        lambda p: replace(p, soft_fusions=()),
        "'sum' \\| 'b' separate 'added' and 'normed'.*rule 'add-norm'",
    ),
    "soft fusion of an unknown node": (
        lambda p: replace(p, soft_fusions=(SoftFusion("add-norm", "ghost", "normed", "r"),)),
        "unknown node 'ghost'",
    ),
    "soft fusion under an unknown rule": (
        lambda p: replace(p, soft_fusions=(SoftFusion("ghost", "added", "normed", "r"),)),
        "soft fusion 'ghost' .*does not fall under that rule",
    ),
    "soft fusion without reason": (
        lambda p: replace(p, soft_fusions=(SoftFusion("add-norm", "added", "normed", ""),)),
        "soft fusion 'add-norm' .*has no reason",
    ),
    "soft fusion that no boundary separates": (
        lambda p: replace(
            p,
            blocks=(
                p.blocks[0],
                replace(
                    p.blocks[1], nodes=("added", "normed"), output="normed", outputs=("normed",)
                ),
                replace(p.blocks[2], nodes=("second",), input="normed", inputs=("normed",)),
            ),
        ),
        "no boundary separates the pair",
    ),
}

GATED: dict[str, Corruption] = {
    "tuple crosses": (
        lambda p: split(p, "gate", 2, "parts", "w"),
        "'parts' of block 'gate0' crosses a boundary and is not a tensor(.|\n)*'left'",
    ),
    "glue with parameters and no reason": (
        lambda p: change(p, "both", reason=""),
        "glue block 'both' has parameters",
    ),
    "glue with parameters and several operators": (
        lambda p: replace(
            p,
            blocks=(
                p.blocks[0],
                replace(
                    p.blocks[2],
                    nodes=("narrow", "both"),
                    n_params=48,
                    inputs=("product",),
                    params=("v", "u"),
                ),
            ),
        ),
        "glue block 'both' has parameters",
    ),
    "block that nobody reads": (
        lambda p: returning(p, "narrow"),
        "'both' computes nothing that is read",
    ),
}
