"""The fusions of onnxruntime at ``ORT_ENABLE_EXTENDED`` on CPU, after torch's ONNX exporter.

The rules are measured: ``benchmarks/fusion_probe.py`` prints the table behind this file, and
``tests/backends/test_fusion_rules.py`` measures each rule again.

A rule has two operators and no shapes, so some match more than onnxruntime fuses (it joins
``linear`` and ``relu`` for matrices only, and operators after a ``batch_norm`` only if a
convolution precedes it). That is harmless: the consumers of hard rules have few or no parameters,
and stay with their producers. Rules whose name ends in ``-kept`` fuse nothing today.

A rule has no more than two operators, whereas onnxruntime also recognises whole subgraphs: a gelu,
swish or normalisation in elementary operators. Their values have several readers, so no boundary
can lie on them; but the addition before such a normalisation joins it too
(SkipLayerNormalization), for which there is no rule.
"""

from __future__ import annotations

from fxelastic.ir.fusion import FusionRule, FusionRules
from fxelastic.ir.operators import CONVOLUTIONS, PRODUCTS, TRANSPOSED_CONVOLUTIONS


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in names.split())


_CONV = CONVOLUTIONS | _aten("convolution")
_GEMM = _aten("linear addmm")
_MATMUL = PRODUCTS | _aten("baddbmm")
_ATTENTION = _aten("scaled_dot_product_attention")
_ADD = _aten("add sub")
_SCALE = _aten("mul div")
_PAD = _aten("pad constant_pad_nd")
_POOL = _aten("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d")
_BATCH_NORM = _aten("batch_norm")
_LAYER_NORM = _aten("layer_norm")
_TRANSPOSE = _aten("transpose permute t swapaxes movedim")
_RESHAPE = _aten(
    "reshape view flatten unflatten squeeze unsqueeze channel_shuffle pixel_shuffle pixel_unshuffle"
)
_NO_OP = _aten(
    "dropout feature_dropout alpha_dropout feature_alpha_dropout"
    " contiguous clone detach alias to type_as"
)

_CONV_ACTIVATION = _aten(
    "relu relu6 hardtanh clamp clamp_min clamp_max clip leaky_relu sigmoid tanh hardsigmoid"
    " log_sigmoid"
)
_GEMM_ACTIVATION = _aten("relu leaky_relu sigmoid tanh hardsigmoid elu selu log_sigmoid gelu")
_OTHER_ACTIVATION = _aten("hardswish silu elu selu celu gelu mish softplus prelu threshold")
_ACTIVATION = _CONV_ACTIVATION | _GEMM_ACTIVATION | _OTHER_ACTIVATION

_FUSED_PRODUCER = _CONV | TRANSPOSED_CONVOLUTIONS | _GEMM | _MATMUL | _ADD | _SCALE | _BATCH_NORM

ONNXRUNTIME = FusionRules(
    "onnxruntime",
    (
        FusionRule(
            "conv-bn",
            _CONV | TRANSPOSED_CONVOLUTIONS,
            _BATCH_NORM,
            reason="the exporter and ConvBNFusion fold a batch norm into the convolution's weights",
        ),
        FusionRule(
            "conv-activation",
            _CONV,
            _CONV_ACTIVATION,
            reason="ConvActivationFusion makes a FusedConv of a convolution and its activation",
        ),
        FusionRule(
            "conv-constant",
            _CONV,
            _ADD | _SCALE,
            constant_operand=True,
            reason="ConvMulFusion and ConvAddFusion fold a constant into the convolution's weights",
        ),
        FusionRule(
            "pad-conv",
            _PAD,
            _CONV | _POOL,
            reason="PadFusion makes the padding an attribute of the convolution or pooling",
        ),
        FusionRule(
            "gemm-bn",
            _GEMM | _MATMUL,
            _BATCH_NORM,
            reason="the exporter and MatMulBNFusion fold a batch norm into a matrix product",
        ),
        FusionRule(
            "gemm-activation",
            _GEMM,
            _GEMM_ACTIVATION,
            reason="GemmActivationFusion joins an activation to the product of two matrices, "
            "BiasGeluFusion a gelu to the bias",
        ),
        FusionRule(
            "matmul-constant",
            _GEMM | _MATMUL | _ATTENTION,
            _ADD | _SCALE,
            constant_operand=True,
            reason="MatMulAddFusion makes a bias part of the product, MatMulScaleFusion a factor",
        ),
        FusionRule(
            "transpose-matmul",
            _TRANSPOSE | _aten("contiguous"),
            _GEMM | _MATMUL,
            reason="MatmulTransposeFusion makes the transposition an attribute of the product",
        ),
        FusionRule(
            "bn-activation",
            _BATCH_NORM,
            _CONV_ACTIVATION | _GEMM_ACTIVATION,
            reason="a batch norm goes into the convolution or product before it, whose activation "
            "is then fused",
        ),
        FusionRule(
            "bn-constant",
            _BATCH_NORM,
            _ADD | _SCALE,
            constant_operand=True,
            reason="a batch norm goes into the convolution before it, and so does a constant",
        ),
        FusionRule(
            "bn-bn",
            _BATCH_NORM,
            _BATCH_NORM,
            reason="a batch norm goes into the convolution before it, and so does a second one",
        ),
        FusionRule(
            "scale-constant",
            _SCALE,
            _ADD | _SCALE,
            constant_operand=True,
            reason="scale and shift both go into the convolution before them, and are part of a "
            "normalisation that is written out",
        ),
        FusionRule(
            "shift-constant",
            _ADD,
            _ADD | _SCALE,
            constant_operand=True,
            constant_producer=True,
            reason="a constant goes into the convolution before it, and so does a second one",
        ),
        FusionRule(
            "constant-bn",
            _ADD | _SCALE,
            _BATCH_NORM,
            constant_producer=True,
            reason="a constant goes into the convolution before it, and so does a batch norm",
        ),
        FusionRule(
            "constant-activation",
            _ADD | _SCALE,
            _CONV_ACTIVATION | _GEMM_ACTIVATION,
            reason="a bias or scale goes into the operator before it, whose activation is then "
            "fused (BiasGelu, FusedConv, FusedGemm)",
        ),
        FusionRule(
            "relu-clip",
            _CONV_ACTIVATION,
            _aten("clamp clamp_min clamp_max clip hardtanh relu relu6"),
            reason="FuseReluClip makes one Clip of two bounds",
        ),
        FusionRule(
            "layout-layout",
            _TRANSPOSE | _RESHAPE | _aten("contiguous"),
            _TRANSPOSE | _RESHAPE | _aten("mean select"),
            reason="the transpose optimiser and ReshapeFusion merge changes of layout, and move "
            "them into a reduction or selection",
        ),
        FusionRule(
            "no-op-after",
            _FUSED_PRODUCER | _TRANSPOSE | _RESHAPE,
            _NO_OP,
            reason="operators that compute nothing in eval mode are removed, and hide no fusion",
        ),
        FusionRule(
            "no-op-before",
            _NO_OP,
            _BATCH_NORM | _CONV_ACTIVATION | _GEMM_ACTIVATION,
            reason="operators that compute nothing in eval mode are removed, and hide no fusion",
        ),
        FusionRule(
            "no-op-constant",
            _NO_OP,
            _ADD | _SCALE,
            constant_operand=True,
            reason="operators that compute nothing in eval mode are removed, and hide no fusion",
        ),
        FusionRule(
            "activation-kept",
            _FUSED_PRODUCER | _NO_OP,
            _ACTIVATION,
            reason="an activation has its own kernel here, but belongs to what it follows",
        ),
        FusionRule(
            "add-layer-norm",
            _aten("add") | _NO_OP,
            _LAYER_NORM,
            soft=True,
            reason="SkipLayerNormFusion joins an addition and the normalisation of its sum",
        ),
        FusionRule(
            "matmul-add",
            _GEMM | _MATMUL | _NO_OP,
            _aten("add"),
            soft=True,
            reason="the addition may become part of a matrix product, or the product's bias part "
            "of a SkipLayerNormalization that follows",
        ),
        FusionRule(
            "scale-matmul",
            _SCALE,
            _GEMM | _MATMUL | _ATTENTION,
            soft=True,
            constant_producer=True,
            reason="MatMulScaleFusion makes a numeric factor an attribute of the product",
        ),
    ),
)
