"""Ghost: some outputs by the layer, the others from these by a cheap filter of one channel each."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxelastic.branches.operators.layers import Layer
from fxelastic.branches.operators.moments import Moments
from fxelastic.branches.operators.operator import LayerOperator, Replacement, rank_of, suffix
from fxelastic.branches.operators.stand_in import StandIn
from fxelastic.branches.options import shares


@dataclass(frozen=True)
class Ghost(LayerOperator):
    """Each convolution of a block with part of its outputs, and the others filtered from these.

    The outputs that stay are those that explain most of the variance of all, one after the other.
    Each of the others begins as the multiple of the one it correlates with most.

    Attributes:
        ratios: Shares of the outputs that the convolution computes; each makes one branch.

    Raises:
        UsageError: A share is not in (0, 1).

    Source: Han et al., GhostNet, CVPR 2020; AdaScale, section III-A1, structural operators.
    """

    ratios: Sequence[float] = (0.5,)

    def __post_init__(self) -> None:
        """Check the options."""
        object.__setattr__(self, "ratios", shares("ratios", self.ratios))

    @property
    def name(self) -> str:
        """The name of the kind."""
        return "ghost"

    def variants(self) -> Mapping[str, object]:
        """The shares."""
        return {suffix(share): share for share in self.ratios}

    def fit(self, layer: Layer, variant: Any) -> Replacement | str:
        """Split a convolution's outputs; see `LayerOperator.fit`."""
        if not layer.kernel:
            return "it is a linear map, whose outputs have no neighbours"
        kept = rank_of(layer.n_out, variant)
        if kept >= layer.n_out:
            return f"it has {layer.n_out} outputs, too few to leave some out"
        filters = (layer.n_out - kept) * 3 ** len(layer.kernel)
        weights = kept * layer.n_in * layer.taps + filters
        return Replacement(weights, weights, lambda s, m: _written(s, m, kept))


def _written(stand_in: StandIn, known: Moments, kept: int) -> fx.Node:
    layer = stand_in.layer
    n_out, dims = layer.n_out, len(layer.kernel)
    first, rest, source, factor = chosen(known.outputs(), kept)
    matrix = layer.matrix
    value = stand_in.spatial(layer.operand, matrix[first])
    filters = matrix.new_zeros((len(rest), 3**dims))
    filters[:, 3**dims // 2] = factor
    read = stand_in.select(value, source)
    ghosts = stand_in.map(
        read,
        filters.reshape(len(rest), 1, *(3,) * dims),
        padding=(1,) * dims,
        groups=len(rest),
    )
    joined = stand_in.cat((value, ghosts))
    order = torch.empty(n_out, dtype=torch.int64, device=first.device)
    order[torch.cat((first, rest))] = torch.arange(n_out, device=first.device)
    ordered = stand_in.select(joined, order)

    def residual() -> Tensor:
        left_out = torch.zeros_like(matrix)
        left_out[rest] = matrix[rest] - factor.reshape(-1, 1, 1) * matrix[first[source]]
        return left_out.flatten(1)

    bias = stand_in.shifted_bias(known, residual)
    return ordered if bias is None else stand_in.add_per_channel(ordered, bias)


def chosen(covariance: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Choose outputs, and pair each of the others with the one that explains it best.

    Args:
        covariance: Covariance of the outputs ``[n, n]``.
        kept: How many to choose. Each step takes the one that adds most to the variance that
            partners explain.

    Returns:
        The chosen outputs, the others (both in ascending order), for each of the others the
        position of its partner among the chosen, and the factor of least squares.
    """
    covariance = covariance.double()
    variance = covariance.diagonal().clamp_min(1e-300)
    # [i, j]: the variance of output j that output i explains.
    explained = covariance.square() / variance.unsqueeze(1)
    first = torch.tensor(
        sorted(_covering(explained.float().cpu().numpy(), kept)), device=covariance.device
    )
    others = torch.ones(len(covariance), dtype=torch.bool, device=covariance.device)
    others[first] = False
    remaining = others.nonzero().flatten()
    source = explained[first][:, remaining].argmax(0)
    partner = first[source]
    return first, remaining, source, covariance[remaining, partner] / variance[partner]


def _covering(values: np.ndarray[Any, Any], n: int) -> list[int]:
    """Choose rows one after another: next comes the one that raises the sum of maxima most.

    Args:
        values: ``[rows, columns]``, at least 0.
        n: How many rows to choose.
    """
    # What a row adds only gets less, so that an earlier value is a bound, and few are computed.
    bounds = [(-gain, i) for i, gain in enumerate(values.sum(1))]
    heapq.heapify(bounds)
    best = np.zeros_like(values[0])
    taken: list[int] = []
    while len(taken) < n:
        _, i = heapq.heappop(bounds)
        now = (-np.maximum(values[i] - best, 0).sum(), i)
        if bounds and now > bounds[0]:
            heapq.heappush(bounds, now)
        else:
            taken.append(i)
            best = np.maximum(best, values[i])
    return taken
