"""Low rank: a layer as a product of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxelastic.branches.operators.factors import by_inputs, by_outputs
from fxelastic.branches.operators.layers import Layer
from fxelastic.branches.operators.moments import Moments
from fxelastic.branches.operators.operator import LayerOperator, Replacement
from fxelastic.branches.operators.ranks import rank_of, suffix
from fxelastic.branches.operators.stand_in import StandIn
from fxelastic.branches.options import shares
from fxelastic.errors import UsageError

#: Ways to factorise a convolution: by its channels, or by the two dimensions of its kernel.
WAYS = ("channel", "spatial")


@dataclass(frozen=True)
class LowRank(LayerOperator):
    """Each layer of a block as a product of two of lower rank.

    A linear map becomes two. A convolution becomes one with fewer channels and a pointwise one
    (``channel``), or one along the height and one along the width (``spatial``, for kernels of two
    dimensions). The factors are the best ones for the outputs' mean squared error: on calibration
    data if there is any, else for white noise, which is the singular value decomposition.

    Attributes:
        ranks: Shares of the full rank; each makes one branch. The full rank is that of the weight
            by output channels, or, in ``spatial``, the larger number of channels.
        ways: How to factorise convolutions, of ``channel`` and ``spatial``; each makes one branch.

    Raises:
        UsageError: A rank is not in (0, 1), or a way is unknown.

    Source: AdaScale, section III-A1, tensor decomposition. Channels: Zhang et al., Accelerating
    very deep convolutional networks, TPAMI 2016; space: Jaderberg et al., BMVC 2014.
    """

    ranks: Sequence[float] = (0.5, 0.25)
    ways: Sequence[str] = ("channel",)

    def __post_init__(self) -> None:
        """Check the options."""
        object.__setattr__(self, "ranks", shares("ranks", self.ranks))
        ways = (self.ways,) if isinstance(self.ways, str) else tuple(self.ways)
        object.__setattr__(self, "ways", ways)
        if not ways or not set(ways) <= set(WAYS):
            raise UsageError(
                "unknown way to factorise convolutions",
                expected="some of " + ", ".join(WAYS),
                got=repr(self.ways),
            )

    @property
    def name(self) -> str:
        """The name of the kind."""
        return "lowrank"

    def variants(self) -> Mapping[str, object]:
        """The ranks, in each way."""
        return {
            suffix(rank) + ("s" if way == "spatial" else ""): (way, rank)
            for way in dict.fromkeys(self.ways)
            for rank in dict.fromkeys(self.ranks)
        }

    def fit(self, layer: Layer, variant: Any) -> Replacement | str:
        """Factorise a layer; see `LayerOperator.fit`."""
        way, share = variant
        if way == "channel":
            full = min(layer.n_in * layer.taps, layer.n_out)
            rank = rank_of(full, share)
            if rank >= full:
                return f"its rank is {full}"
            weights = rank * (layer.n_in * layer.taps + layer.n_out)
            return Replacement(weights, weights, lambda s, m: _channel(s, m, rank))
        if len(layer.kernel) != 2 or min(layer.kernel) < 2:
            return "its kernel does not have two dimensions"
        high, wide = layer.kernel
        full = min(layer.n_in * high, layer.n_out * wide, max(layer.n_in, layer.n_out))
        rank = rank_of(full, share)
        columns = rank * layer.n_in * high
        rows = rank * layer.n_out * wide
        # The first convolution keeps the width.
        flops = columns * layer.stride[1] + rows
        return Replacement(columns + rows, flops, lambda s, m: _spatial(s, m, rank))


def _channel(stand_in: StandIn, known: Moments, rank: int) -> fx.Node:
    layer = stand_in.layer
    flat = layer.matrix.flatten(1)
    # The smaller of the two eigenproblems.
    if layer.taps == 1 and layer.n_in < layer.n_out:
        left, right = by_inputs(flat, known.channels, rank)
    else:
        left, right = by_outputs(flat, known.outputs, rank)
    first = stand_in.spatial(layer.operand, right.unflatten(1, (layer.n_in, layer.taps)))
    return stand_in.pointwise(first, left, stand_in.shifted_bias(known, flat - left @ right))


def _spatial(stand_in: StandIn, known: Moments, rank: int) -> fx.Node:
    layer = stand_in.layer
    high, wide = layer.kernel
    weight = layer.matrix.unflatten(2, (high, wide))
    # Rows: an output channel at a horizontal tap; columns: an input channel at a vertical tap.
    matrix = weight.permute(0, 3, 1, 2).reshape(layer.n_out * wide, layer.n_in * high)
    taps = known.taps.sum(0).unflatten(0, (high, wide)).unflatten(2, (high, wide))
    vertical = torch.einsum("awbw->ab", taps)
    vertical = vertical * high / vertical.trace().clamp_min(1e-300)
    left, right = by_inputs(matrix, torch.kron(known.channels, vertical), rank)
    stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    first = stand_in.map(
        layer.operand,
        right.reshape(rank, layer.n_in, high, 1),
        stride=(stride[0], 1),
        padding=(padding[0], 0),
        dilation=(dilation[0], 1),
    )
    horizontal = left.reshape(layer.n_out, wide, rank).permute(0, 2, 1)
    residual = matrix - left @ right
    residual = residual.reshape(layer.n_out, wide, layer.n_in, high).permute(0, 2, 3, 1)
    return stand_in.map(
        first,
        horizontal.unsqueeze(2),
        stand_in.shifted_bias(known, residual.flatten(1)),
        stride=(1, stride[1]),
        padding=(0, padding[1]),
        dilation=(1, dilation[1]),
    )
