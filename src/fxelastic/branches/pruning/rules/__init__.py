"""How each operator relates the channels of its operands to the channels of its result.

A rule returns the labels of the result, a list of labels for an operator with several results, or
None if it does not know the operator's form; then all operands and results are fixed. Operators
that mix channels other than by a sum of products (norms, softmax, means) fix them, since the other
channels would change if one were removed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from fxelastic.branches.pruning.channels import Analysis, Dims
from fxelastic.branches.pruning.rules import elementwise, products, shapes
from fxelastic.ir.operators import (
    ACTIVATIONS,
    CONVOLUTIONS,
    COPIES,
    LAYER_NORMS,
    PRODUCTS,
    RESHAPES,
    TRANSPOSED_CONVOLUTIONS,
)

Rule = Callable[[Analysis, fx.Node], Dims | list[Dims] | None]

RULES: dict[str, Rule] = {
    "pointwise": elementwise.pointwise,
    "constant": elementwise.constant,
    "module:batch_norm": elementwise.batch_norm_module,
    "getitem": shapes.item,
    **dict.fromkeys(CONVOLUTIONS, products.convolution),
    **dict.fromkeys(TRANSPOSED_CONVOLUTIONS, products.transposed_convolution),
    "aten.linear": products.linear,
    **dict.fromkeys(PRODUCTS, products.product),
    "aten.addmm": products.added_product,
    "aten.einsum": products.einsum,
    "aten.scaled_dot_product_attention": products.attention,
    **dict.fromkeys(("aten.batch_norm", "aten.instance_norm"), elementwise.channel_norm),
    "aten.group_norm": elementwise.group_norm,
    **dict.fromkeys(LAYER_NORMS, elementwise.layer_norm),
    "aten._weight_norm": elementwise.weight_norm,
    **dict.fromkeys(
        ("aten.softmax", "aten.log_softmax", "aten._softmax", "aten.cumsum"), elementwise.along
    ),
    **dict.fromkeys(("aten.mean", "aten.sum", "aten.amax", "aten.amin"), elementwise.reduction),
    **dict.fromkeys(
        (
            *(
                f"aten.{kind}_pool{n}d"
                for kind in ("max", "avg", "adaptive_avg")
                for n in (1, 2, 3)
            ),
            "aten.adaptive_max_pool2d",
            *(f"aten.upsample_nearest{n}d" for n in (1, 2, 3)),
            *("aten.upsample_bilinear2d", "aten.upsample_bicubic2d"),
        ),
        elementwise.spatial,
    ),
    **dict.fromkeys((*RESHAPES, "aten.view_as", "aten.reshape_as"), shapes.reshape),
    "aten.permute": shapes.permutation,
    **dict.fromkeys(("aten.transpose", "aten.t", "aten.mT", "aten.swapaxes"), shapes.transposition),
    "aten.unsqueeze": shapes.unsqueeze,
    "aten.squeeze": shapes.squeeze,
    **dict.fromkeys(("aten.expand", "aten.expand_as"), shapes.expansion),
    "aten.repeat_interleave": shapes.repeat_interleave,
    "aten.channel_shuffle": shapes.channel_shuffle,
    "aten.pixel_shuffle": shapes.pixel_shuffle,
    "aten.cat": shapes.concatenation,
    "aten.concat": shapes.concatenation,
    "aten.stack": shapes.stack,
    **dict.fromkeys(("aten.chunk", "aten.split", "aten.split_with_sizes"), shapes.parts),
    "aten.unbind": shapes.unbind,
    "aten.select": shapes.select,
    "aten.index": shapes.indexing,
    "aten.embedding": shapes.embedding,
    "aten.slice": shapes.slicing,
    **dict.fromkeys(("aten.roll", "aten.flip"), shapes.untouched_dimension),
    "aten.prelu": elementwise.prelu,
    # Torch does not tag all of these as pointwise.
    **dict.fromkeys(
        (*ACTIVATIONS, "aten.rsub", "aten.square", "aten.softsign", "aten.tanhshrink"),
        elementwise.pointwise,
    ),
    **dict.fromkeys(("aten.pad", "aten.constant_pad_nd"), shapes.padding),
    **dict.fromkeys(
        (
            *COPIES,
            *("aten.dropout", "aten.to", "aten._to_copy"),
            *("aten.zeros_like", "aten.ones_like", "aten.full_like"),
        ),
        elementwise.same,
    ),
}
