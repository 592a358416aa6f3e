"""How each operator ties the channels of its operands to those of its result.

A rule returns the labels of the result, or a list of them for an operator with several results,
or None where it does not know the operator's form; then all that it touches is fixed. What mixes
channels other than by a sum of products (a norm, a softmax, a mean) fixes them: removing one would
change the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import fx

from fxelastic.branches.pruning.labels import Dims
from fxelastic.branches.pruning.rules import elementwise, norms, parts, products, shapes

if TYPE_CHECKING:
    from fxelastic.branches.pruning.analysis import Analysis

Rule = Callable[["Analysis", fx.Node], "Dims | list[Dims] | None"]

RULES: dict[str, Rule] = {
    "pointwise": elementwise.pointwise,
    "constant": elementwise.constant,
    "module:batch_norm": norms.batch_norm_module,
    "getitem": parts.item,
    **dict.fromkeys(("aten.conv1d", "aten.conv2d", "aten.conv3d"), products.convolution),
    **dict.fromkeys(
        ("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d"),
        products.transposed_convolution,
    ),
    "aten.linear": products.linear,
    **dict.fromkeys(("aten.matmul", "aten.mm", "aten.bmm"), products.product),
    "aten.addmm": products.added_product,
    "aten.einsum": products.einsum,
    "aten.scaled_dot_product_attention": products.attention,
    **dict.fromkeys(("aten.batch_norm", "aten.instance_norm"), norms.channel_norm),
    "aten.group_norm": norms.group_norm,
    **dict.fromkeys(("aten.layer_norm", "aten.rms_norm"), norms.layer_norm),
    "aten._weight_norm": norms.weight_norm,
    **dict.fromkeys(
        ("aten.softmax", "aten.log_softmax", "aten._softmax", "aten.cumsum"), norms.along
    ),
    **dict.fromkeys(("aten.mean", "aten.sum", "aten.amax", "aten.amin"), norms.reduction),
    **dict.fromkeys(
        (
            "aten.max_pool1d",
            "aten.max_pool2d",
            "aten.max_pool3d",
            "aten.avg_pool1d",
            "aten.avg_pool2d",
            "aten.avg_pool3d",
            "aten.adaptive_avg_pool1d",
            "aten.adaptive_avg_pool2d",
            "aten.adaptive_avg_pool3d",
            "aten.adaptive_max_pool2d",
            "aten.upsample_nearest1d",
            "aten.upsample_nearest2d",
            "aten.upsample_nearest3d",
            "aten.upsample_bilinear2d",
            "aten.upsample_bicubic2d",
        ),
        norms.spatial,
    ),
    **dict.fromkeys(
        (
            "aten.view",
            "aten.reshape",
            "aten._unsafe_view",
            "aten.flatten",
            "aten.unflatten",
            "aten.view_as",
            "aten.reshape_as",
        ),
        shapes.reshape,
    ),
    "aten.permute": shapes.permutation,
    **dict.fromkeys(("aten.transpose", "aten.t", "aten.mT", "aten.swapaxes"), shapes.transposition),
    "aten.unsqueeze": shapes.unsqueeze,
    "aten.squeeze": shapes.squeeze,
    **dict.fromkeys(("aten.expand", "aten.expand_as"), shapes.expansion),
    "aten.repeat_interleave": shapes.repeat_interleave,
    "aten.channel_shuffle": shapes.channel_shuffle,
    "aten.pixel_shuffle": shapes.pixel_shuffle,
    "aten.cat": parts.concatenation,
    "aten.concat": parts.concatenation,
    "aten.stack": parts.stack,
    **dict.fromkeys(("aten.chunk", "aten.split", "aten.split_with_sizes"), parts.parts),
    "aten.unbind": parts.unbind,
    "aten.select": parts.select,
    "aten.index": parts.indexing,
    "aten.embedding": parts.embedding,
    "aten.slice": parts.slicing,
    **dict.fromkeys(("aten.roll", "aten.flip"), parts.untouched_dimension),
    "aten.prelu": elementwise.prelu,
    # Elementwise operators that torch does not tag as such.
    **dict.fromkeys(
        (
            "aten.relu6",
            "aten.hardtanh",
            "aten.hardswish",
            "aten.hardsigmoid",
            "aten.rsub",
            "aten.square",
            "aten.selu",
            "aten.celu",
            "aten.mish",
            "aten.softsign",
            "aten.tanhshrink",
        ),
        elementwise.pointwise,
    ),
    **dict.fromkeys(("aten.pad", "aten.constant_pad_nd"), parts.padding),
    **dict.fromkeys(
        (
            "aten.clone",
            "aten.contiguous",
            "aten.detach",
            "aten.alias",
            "aten.dropout",
            "aten.to",
            "aten._to_copy",
            "aten.zeros_like",
            "aten.ones_like",
            "aten.full_like",
        ),
        elementwise.same,
    ),
}
