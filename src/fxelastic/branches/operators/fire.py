"""Fire: squeeze the channels, then expand them by pointwise filters and by full ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxelastic.branches.operators.factors import by_inputs
from fxelastic.branches.operators.layers import Layer
from fxelastic.branches.operators.moments import Moments
from fxelastic.branches.operators.operator import STEP, LayerOperator, Replacement, rank_of, suffix
from fxelastic.branches.operators.stand_in import StandIn
from fxelastic.branches.options import shares


@dataclass(frozen=True)
class Fire(LayerOperator):
    """Each convolution of a block as a squeeze of its channels and an expansion of two kinds.

    Half of the outputs, those that lose least by it, read only the middle tap. The squeeze keeps
    the directions that matter most to the products of all outputs.

    Attributes:
        ratios: Shares of the input channels that the squeeze keeps; each makes one branch.

    Raises:
        UsageError: A share is not in (0, 1).

    Source: Iandola et al., SqueezeNet, 2016; AdaScale, section III-A1, structural operators.
    """

    ratios: Sequence[float] = (0.25,)

    def __post_init__(self) -> None:
        """Check the options."""
        object.__setattr__(self, "ratios", shares("ratios", self.ratios))

    @property
    def name(self) -> str:
        """The name of the kind."""
        return "fire"

    def variants(self) -> Mapping[str, object]:
        """The shares."""
        return {suffix(share): share for share in self.ratios}

    def fit(self, layer: Layer, variant: Any) -> Replacement | str:
        """Squeeze a convolution; see `LayerOperator.fit`."""
        if layer.taps == 1:
            return "its kernel has a single tap"
        if any(k % 2 == 0 for k in layer.kernel):
            return "its kernel has an even size, so no middle"
        middle = [d * (k // 2) for k, d in zip(layer.kernel, layer.dilation, strict=True)]
        if any(p > m for p, m in zip(layer.padding, middle, strict=True)):
            return "its padding exceeds its kernel"
        if layer.n_in < 2 * STEP or layer.n_out < 2:
            return f"it has {layer.n_in} input and {layer.n_out} output channels"
        squeezed, full = rank_of(layer.n_in, variant), layer.n_out // 2
        first = layer.n_in * squeezed
        rest = squeezed * (full * layer.taps + layer.n_out - full)
        flops = first * layer.n_positions_in + rest
        return Replacement(first + rest, flops, lambda s, m: _written(s, m, squeezed, full))


def _written(stand_in: StandIn, known: Moments, squeezed: int, full: int) -> fx.Node:
    layer = stand_in.layer
    matrix = layer.matrix
    n_out, n_in, taps = matrix.shape
    centre = taps // 2
    around = torch.cat((matrix[..., :centre], matrix[..., centre + 1 :]), 2)
    loss = torch.einsum("oit,ij,ojt->o", around, known.channels, around)
    order = loss.argsort(stable=True)
    narrow, wide = order[: n_out - full].sort().values, order[n_out - full :].sort().values
    kept = matrix.clone()
    only = torch.zeros(taps, dtype=kept.dtype, device=kept.device)
    only[centre] = 1
    kept[narrow] *= only
    products = kept.permute(0, 2, 1).reshape(n_out * taps, n_in)
    back, inwards = by_inputs(products, known.coloured, squeezed)
    expand = back.reshape(n_out, taps, squeezed).permute(0, 2, 1)
    value = stand_in.pointwise(layer.operand, inwards)
    small = stand_in.sampled(value, expand[narrow][..., centre])
    large = stand_in.spatial(value, expand[wide])
    joined = stand_in.cat((small, large))
    at = torch.empty(n_out, dtype=torch.int64, device=narrow.device)
    at[torch.cat((narrow, wide))] = torch.arange(n_out, device=narrow.device)
    ordered = stand_in.select(joined, at)

    def residual() -> Tensor:
        realised = torch.einsum("ost,si->oit", expand, inwards)
        realised[narrow] *= only
        return (matrix - realised).flatten(1)

    bias = stand_in.shifted_bias(known, residual)
    return ordered if bias is None else stand_in.add_per_channel(ordered, bias)
