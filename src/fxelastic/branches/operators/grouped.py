"""Grouped layers: two block-diagonal ones with a shuffle of the channels between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxelastic.branches.operators.factors import blockwise
from fxelastic.branches.operators.layers import Layer
from fxelastic.branches.operators.moments import Moments
from fxelastic.branches.operators.operator import LayerOperator, Replacement
from fxelastic.branches.operators.stand_in import StandIn
from fxelastic.branches.options import counts


@dataclass(frozen=True)
class Grouped(LayerOperator):
    """Each convolution of a block as a grouped one, a shuffle, and a grouped pointwise one.

    Each pair of an input and an output group keeps the leading directions of its part of the
    weights.

    Attributes:
        groups: Numbers of groups; each makes one branch.

    Raises:
        UsageError: A number is less than 1.

    Source: Zhang et al., ShuffleNet, CVPR 2018; AdaScale, section III-A1, structural operators.
    """

    groups: Sequence[int] = (4,)

    def __post_init__(self) -> None:
        """Check the options."""
        object.__setattr__(self, "groups", counts("groups", self.groups))

    @property
    def name(self) -> str:
        """The name of the kind."""
        return "grouped"

    def variants(self) -> Mapping[str, object]:
        """The numbers of groups."""
        return {str(n): n for n in self.groups}

    def fit(self, layer: Layer, variant: Any) -> Replacement | str:
        """Split a convolution; see `LayerOperator.fit`."""
        if not layer.kernel:
            return "it is a linear map, which has no groups"
        if variant == 1 or layer.n_in % variant or layer.n_out % variant**2:
            return f"its channels do not split into {variant} groups of {variant} parts"
        weights = layer.n_out * layer.n_in * layer.taps // variant + layer.n_out**2 // variant
        return Replacement(weights, weights, lambda s, m: _written(s, m, variant))


def _written(stand_in: StandIn, known: Moments, groups: int) -> fx.Node:
    layer = stand_in.layer
    matrix = layer.matrix
    first, second = blockwise(matrix, known.coloured, groups)
    value = stand_in.spatial(layer.operand, first, groups=groups)
    shuffled = stand_in.shuffle(value, groups, layer.n_out)
    kernel = (1,) * len(layer.kernel)
    bias = stand_in.shifted_bias(
        known, lambda: (matrix - _realised(first, second, groups)).flatten(1)
    )
    return stand_in.map(shuffled, second.reshape(*second.shape, *kernel), bias, groups=groups)


def _realised(first: torch.Tensor, second: torch.Tensor, groups: int) -> torch.Tensor:
    """The weights ``[n_out, n_in, taps]`` that the two maps amount to."""
    n_out, columns, taps = first.shape
    rank = n_out // groups**2
    inner = first.reshape(groups, groups, rank, columns, taps)
    outer = second.reshape(groups, n_out // groups, groups, rank)
    return torch.einsum("brap,abpct->bract", outer, inner).reshape(n_out, groups * columns, taps)
