"""Results with their samples in dimension 0, in whichever dimension the model has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from fxelastic.ir import trees
from fxelastic.ir.block import BlockGraph
from fxelastic.train.losses import (
    alpha_divergence,
    cross_entropy,
    soft_cross_entropies,
    soft_cross_entropy,
)
from fxelastic.train.metrics import accuracy, agreement, cosine, likeness, spearman

_T = TypeVar("_T")

# The losses and metrics that expect samples in dimension 0.
_BY_SAMPLE: tuple[Callable[..., Any], ...] = (
    *(alpha_divergence, cross_entropy, soft_cross_entropies, soft_cross_entropy),
    *(accuracy, agreement, cosine, likeness, spearman),
)


@dataclass(frozen=True)
class SampleLayout:
    """Where a model's results hold samples.

    The losses and metrics of this package read samples from dimension 0. A function of the user
    gets what the model returns, and the target as it is.

    Attributes:
        dims: The dimension of the samples in each flat result.
    """

    dims: tuple[int, ...]

    @classmethod
    def of(cls, partition: BlockGraph) -> SampleLayout:
        """The layout of a model's results."""
        return cls(partition.result_dims)

    def compare(self, function: Callable[[Any, Any], _T], result: Any, target: Any) -> _T:
        """Call a loss or a metric.

        Args:
            function: The loss or the metric.
            result: A subnet's result.
            target: The original's result, or the target of the batch. It holds samples in the
                dimension in which the first result does, or in dimension 0 if it has fewer
                dimensions.
        """
        if not any(self.dims) or not any(function is known for known in _BY_SAMPLE):
            return function(result, target)
        if not isinstance(target, Tensor) and trees.flatten(target)[1] == trees.flatten(result)[1]:
            return function(self._moved(result), self._moved(target))
        return function(self._moved(result), self._moved_target(target))

    def _moved(self, result: Any) -> Any:
        leaves, tree = trees.flatten(result)
        moved = [
            leaf.movedim(dim, 0) if dim else leaf
            for leaf, dim in zip(leaves, self.dims, strict=True)
        ]
        return trees.unflatten(tree, moved)

    def _moved_target(self, target: Any) -> Any:
        is_as_result = isinstance(target, Tensor) and self.dims[0] < target.dim()
        return target.movedim(self.dims[0], 0) if is_as_result else target
