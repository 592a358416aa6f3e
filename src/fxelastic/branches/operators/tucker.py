"""Tucker-2: a convolution between fewer channels, with a pointwise map on each side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxelastic.branches.operators.factors import by_inputs, by_outputs
from fxelastic.branches.operators.layers import Layer
from fxelastic.branches.operators.moments import Moments
from fxelastic.branches.operators.operator import STEP, LayerOperator, Replacement, rank_of, suffix
from fxelastic.branches.operators.stand_in import StandIn
from fxelastic.branches.options import shares


@dataclass(frozen=True)
class Tucker(LayerOperator):
    """Each convolution of a block as a pointwise map, a convolution of fewer channels, and another.

    Inputs are projected so that the error of the convolution's products is least, and outputs on
    their principal directions: on calibration data if there is any.

    Attributes:
        ranks: Shares of the input and output channels that the inner convolution has; each makes
            one branch.

    Raises:
        UsageError: A rank is not in (0, 1).

    Source: Kim et al., Compression of deep convolutional neural networks for fast and low power
    mobile applications, ICLR 2016; AdaScale, section III-A1, tensor decomposition.
    """

    ranks: Sequence[float] = (0.5, 0.25)

    def __post_init__(self) -> None:
        """Check the options."""
        object.__setattr__(self, "ranks", shares("ranks", self.ranks))

    @property
    def name(self) -> str:
        """The name of the kind."""
        return "tucker"

    def variants(self) -> Mapping[str, object]:
        """The ranks."""
        return {suffix(rank): rank for rank in self.ranks}

    def fit(self, layer: Layer, variant: Any) -> Replacement | str:
        """Factorise a convolution; see `LayerOperator.fit`."""
        if layer.taps == 1:
            return "its kernel has a single tap"
        inner_in, inner_out = (_inner(n, variant) for n in (layer.n_in, layer.n_out))
        first = layer.n_in * inner_in * (inner_in < layer.n_in)
        rest = inner_in * inner_out * layer.taps + inner_out * layer.n_out
        # The first map runs before the strides.
        flops = first * layer.n_positions_in + rest
        return Replacement(first + rest, flops, lambda s, m: _written(s, m, inner_in, inner_out))


def _inner(channels: int, share: float) -> int:
    """The number of channels of the inner convolution; few channels, as of an image, stay."""
    return channels if channels < 2 * STEP else rank_of(channels, share)


def _written(stand_in: StandIn, known: Moments, inner_in: int, inner_out: int) -> fx.Node:
    layer = stand_in.layer
    matrix = layer.matrix
    n_out, n_in, taps = matrix.shape
    # Products of one input channel with the weights of all outputs and taps, as a map of channels.
    products = matrix.permute(0, 2, 1).reshape(n_out * taps, n_in)
    value, inwards = layer.operand, torch.eye(n_in, dtype=matrix.dtype, device=matrix.device)
    core = matrix
    if inner_in < n_in:
        back, inwards = by_inputs(products, known.coloured, inner_in)
        core = back.reshape(n_out, taps, inner_in).permute(0, 2, 1)
        value = stand_in.pointwise(value, inwards)
    outwards, core = by_outputs(core.flatten(1), known.outputs(), inner_out)
    core = core.unflatten(1, (inner_in, taps))

    def residual() -> Tensor:
        realised = outwards @ (core.permute(0, 2, 1) @ inwards).permute(0, 2, 1).flatten(1)
        left_out: Tensor = matrix.flatten(1) - realised
        return left_out

    inner = stand_in.spatial(value, core)
    return stand_in.pointwise(inner, outwards, stand_in.shifted_bias(known, residual))
