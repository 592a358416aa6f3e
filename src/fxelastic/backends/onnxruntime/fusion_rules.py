"""What onnxruntime fuses at ``ORT_ENABLE_EXTENDED`` on CPU.

Measured, not guessed: ``benchmarks/fusion_probe.py`` prints the table behind this file, and
``tests/backends/test_fusion_rules.py`` measures each rule again.
"""

from __future__ import annotations

from fxelastic.ir.fusion import FusionRule, FusionRules

_CONV = frozenset({"aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution"})
_CONV_TRANSPOSE = frozenset(
    {"aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d"}
)
_MATMUL = frozenset({"aten.linear", "aten.matmul", "aten.mm", "aten.bmm", "aten.addmm"})
_NORM = frozenset({"aten.batch_norm"})
_LAYER_NORM = frozenset({"aten.layer_norm", "aten.rms_norm"})
_ADD = frozenset({"aten.add", "aten.sub"})
_MUL = frozenset({"aten.mul", "aten.div"})
_PAD = frozenset({"aten.pad", "aten.constant_pad_nd"})
_POOL = frozenset({"aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d"})
_ACTIVATION = frozenset(
    {
        "aten.relu",
        "aten.relu6",
        "aten.hardtanh",
        "aten.clamp",
        "aten.leaky_relu",
        "aten.sigmoid",
        "aten.tanh",
        "aten.hardsigmoid",
        "aten.hardswish",
        "aten.silu",
        "aten.gelu",
    }
)

ONNXRUNTIME = FusionRules(
    "onnxruntime",
    (
        FusionRule(
            "conv-bn",
            _CONV | _CONV_TRANSPOSE,
            _NORM,
            reason="ConvBNFusion folds the normalisation into the weights of the convolution.",
        ),
        FusionRule(
            "conv-activation",
            _CONV | _CONV_TRANSPOSE,
            _ACTIVATION,
            reason="ConvActivationFusion makes both a FusedConv.",
        ),
        FusionRule(
            "bn-activation",
            _NORM,
            _ACTIVATION,
            reason="After a convolution, its normalisation and activation become one FusedConv.",
        ),
        FusionRule(
            "add-activation",
            _ADD,
            _ACTIVATION,
            reason="After a convolution, a residual add and its activation can join its kernel.",
        ),
        FusionRule(
            "conv-constant",
            _CONV,
            _ADD | _MUL,
            constant_operand=True,
            reason="ConvMulFusion and ConvAddFusion fold a constant into the convolution.",
        ),
        FusionRule(
            "pad-conv",
            _PAD,
            _CONV | _POOL,
            reason="PadFusion makes the padding an attribute of the operator.",
        ),
        FusionRule(
            "matmul-activation",
            _MATMUL,
            _ACTIVATION,
            reason="GemmActivationFusion and BiasGeluFusion join the bias and the activation.",
        ),
        FusionRule(
            "matmul-constant",
            _MATMUL,
            _ADD | _MUL,
            constant_operand=True,
            reason="MatMulAddFusion and MatMulScaleFusion fold a constant into the product.",
        ),
        FusionRule(
            "add-layer-norm",
            _ADD,
            _LAYER_NORM,
            soft=True,
            reason="SkipLayerNormFusion joins a residual add and the normalisation that follows.",
        ),
    ),
)
