"""Low rank: a layer as a product of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from fxelastic.branches.operators.factors import by_inputs, by_outputs
from fxelastic.branches.operators.layers import Layer
from fxelastic.branches.operators.moments import Moments
from fxelastic.branches.operators.operator import LayerOperator, Replacement, rank_of, suffix
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

    The branches of several ranks are one factorisation, sorted by importance: a lower rank takes
    the first rows of the same weights, so that several ranks take the memory of the highest, and
    learn together.

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
            for rank in sorted(set(self.ranks), reverse=True)
        }

    def fit(self, layer: Layer, variant: Any) -> Replacement | str:
        """Factorise a layer; see `LayerOperator.fit`."""
        way, share = variant
        if way == "channel":
            full = min(layer.n_in * layer.taps, layer.n_out)
            rank = rank_of(full, share)
            if rank >= full:
                return f"its rank is {full}, and {share:g} of it is not lower"
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

    @cache
    def factors() -> tuple[Tensor, Tensor]:
        # The smaller of the two eigenproblems.
        if layer.taps == 1 and layer.n_in < layer.n_out:
            return by_inputs(flat, known.coloured, rank)
        return by_outputs(flat, known.outputs(), rank)

    def first() -> Tensor:
        return factors()[1].reshape(rank, layer.n_in, *layer.kernel)

    right = stand_in.prefix("right", first, rank)
    left = stand_in.prefix("left", lambda: factors()[0].mT, rank)
    ones = (1,) * len(layer.kernel)
    outer = stand_in.reshaped(left, (rank, layer.n_out), (1, 0), (layer.n_out, rank, *ones))
    inner = stand_in.spatial(layer.operand, right)
    bias = stand_in.shifted_bias(known, lambda: flat - stand_in.product("left", "right", rank))
    return stand_in.map(inner, outer, bias, dims=len(layer.kernel))


def _spatial(stand_in: StandIn, known: Moments, rank: int) -> fx.Node:
    layer = stand_in.layer
    high, wide = layer.kernel
    weight = layer.matrix.unflatten(2, (high, wide))
    # Rows: an output channel at a horizontal tap; columns: an input channel at a vertical tap.
    matrix = weight.permute(0, 3, 1, 2).reshape(layer.n_out * wide, layer.n_in * high)

    @cache
    def factors() -> tuple[Tensor, Tensor]:
        taps = known.taps.sum(0).unflatten(0, (high, wide)).unflatten(2, (high, wide))
        vertical = torch.einsum("awbw->ab", taps)
        vertical = vertical * high / vertical.trace().clamp_min(1e-300)
        return by_inputs(matrix, torch.kron(known.channels, vertical), rank)

    def first() -> Tensor:
        return factors()[1].reshape(rank, layer.n_in, high, 1)

    right = stand_in.prefix("vertical", first, rank)
    left = stand_in.prefix("horizontal", lambda: factors()[0].mT, rank)

    def residual() -> Tensor:
        left_out: Tensor = matrix - stand_in.product("horizontal", "vertical", rank)
        by_taps = left_out.reshape(layer.n_out, wide, layer.n_in, high).permute(0, 2, 3, 1)
        return by_taps.flatten(1)

    bias = stand_in.shifted_bias(known, residual)
    stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    inner = stand_in.map(
        layer.operand,
        right,
        dims=2,
        stride=(stride[0], 1),
        padding=(padding[0], 0),
        dilation=(dilation[0], 1),
    )
    # [rank, outputs, taps] as [outputs, rank, 1, taps].
    outer = stand_in.reshaped(
        left, (rank, layer.n_out, wide), (1, 0, 2), (layer.n_out, rank, 1, wide)
    )
    return stand_in.map(
        inner,
        outer,
        bias,
        dims=2,
        stride=(1, stride[1]),
        padding=(0, padding[1]),
        dilation=(1, dilation[1]),
    )
