"""Depthwise separable convolutions: one filter or some for each channel, then a pointwise map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxelastic.branches.operators.factors import by_inputs
from fxelastic.branches.operators.layers import Layer
from fxelastic.branches.operators.moments import Moments
from fxelastic.branches.operators.operator import LayerOperator, Replacement
from fxelastic.branches.operators.stand_in import StandIn
from fxelastic.branches.options import counts


@dataclass(frozen=True)
class Separable(LayerOperator):
    """Each convolution of a block as filters of single channels and a pointwise map.

    For each input channel, the filters are the leading directions of its weights over the taps,
    weighted by how its values vary over the taps.

    Attributes:
        terms: Numbers of filters for each channel; each makes one branch.

    Raises:
        UsageError: A number is less than 1.

    Source: AdaScale, section III-A1, structural operators; one singular value decomposition for
    each channel after Guo et al., Network decoupling, BMVC 2018.
    """

    terms: Sequence[int] = (1,)

    def __post_init__(self) -> None:
        """Check the options."""
        object.__setattr__(self, "terms", counts("terms", self.terms))

    @property
    def name(self) -> str:
        """The name of the kind."""
        return "separable"

    def variants(self) -> Mapping[str, object]:
        """The numbers of filters."""
        return {str(n): n for n in self.terms}

    def fit(self, layer: Layer, variant: Any) -> Replacement | str:
        """Factorise a convolution; see `LayerOperator.fit`."""
        if layer.taps == 1:
            return "its kernel has a single tap"
        if variant >= min(layer.taps, layer.n_out):
            full = min(layer.taps, layer.n_out)
            return f"{variant} filters for each channel are not fewer than its full rank, {full}"
        weights = variant * layer.n_in * (layer.taps + layer.n_out)
        return Replacement(weights, weights, lambda s, m: _written(s, m, variant))


def _written(stand_in: StandIn, known: Moments, terms: int) -> fx.Node:
    layer = stand_in.layer
    matrix = layer.matrix
    by_channel = matrix.transpose(0, 1)
    mixed, filters = by_inputs(by_channel, known.taps, terms)
    # One depthwise convolution holds the filters of a channel side by side.
    depthwise = filters.reshape(layer.n_in * terms, 1, layer.taps)
    first = stand_in.spatial(layer.operand, depthwise, groups=layer.n_in)
    pointwise = mixed.transpose(0, 1).flatten(1)
    bias = stand_in.shifted_bias(
        known, lambda: (by_channel - mixed @ filters).transpose(0, 1).flatten(1)
    )
    return stand_in.pointwise(first, pointwise, bias)
