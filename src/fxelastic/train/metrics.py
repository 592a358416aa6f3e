"""Scores of a batch, and in which dimension results hold their samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fxelastic.errors import UsageError
from fxelastic.ir import trees
from fxelastic.ir.block import BlockGraph
from fxelastic.train.losses import (
    IGNORED,
    alpha_divergence,
    check_classes,
    check_several_classes,
    check_shapes,
    class_dim,
    cross_entropy,
    is_empty,
    logits_of,
    normalised_error,
    soft_cross_entropies,
    soft_cross_entropy,
    usual_class_dim,
)

_T = TypeVar("_T")


def accuracy(output: Any, target: Tensor) -> float:
    """The share of elements whose highest logit is the target's class.

    Args:
        output: Logits, or a result that holds them: see `logits_of`.
        target: Class numbers ``(N, ...)``; -100 leaves an element out.

    Returns:
        From 0 to 1; 0 where every element is left out.

    Raises:
        UsageError: There are no logits or only those of one class, the shapes do not match, or a
            class is out of range.
    """
    logits = logits_of(output)
    dim = class_dim(logits, target)
    check_several_classes(logits, dim)
    check_classes(target, logits.shape[dim])
    found = logits.argmax(dim)
    counted = target != IGNORED
    n = int(counted.sum())
    return int(((found == target) & counted).sum()) / n if n else 0.0


def counts(target: Any) -> bool:
    """Whether a target, class numbers or the original's result, has an element to score."""
    if isinstance(target, Tensor) and not target.is_floating_point():
        return bool((target != IGNORED).any())
    return not is_empty(target)


def agreement(output: Any, teacher: Any) -> float:
    """The share of elements for which a subnet and the original choose the same class.

    Args:
        output: A subnet's result.
        teacher: The original's result on the same inputs.

    Returns:
        A number from 0 to 1; 0 where there are no elements.

    Raises:
        UsageError: There are no logits or only those of one class, or the shapes differ.
    """
    logits, like = logits_of(output), logits_of(teacher)
    dim = usual_class_dim(logits)
    check_several_classes(like, dim)
    check_shapes(logits, like)
    same = logits.argmax(dim) == like.argmax(dim)
    return float(same.float().mean()) if same.numel() else 0.0


def likeness(output: Any, teacher: Any) -> float:
    """Compare a subnet's result with the original's.

    It is the `agreement` of class scores; otherwise the `cosine`, or, where a sample's result is
    one number, which has no direction, the share of the variance over the samples that is
    explained.

    Args:
        output: A subnet's result.
        teacher: The original's result on the same inputs.

    Returns:
        A number of at most 1.

    Raises:
        UsageError: There is no floating-point tensor.
    """
    try:
        logits = logits_of(teacher)
        check_several_classes(logits, usual_class_dim(logits))
    except UsageError:
        ours, theirs = _vectors(output, teacher)
        if theirs.shape[1] == 1:
            return 1.0 - float(normalised_error(ours, theirs)) if len(theirs) else 0.0
        return _mean_correlation(ours, theirs)
    return agreement(output, teacher)


def cosine(output: Any, teacher: Any) -> float:
    """The mean cosine between a subnet's flattened result and the original's, over the samples.

    A sample counts as 1 where both results are zero, and as 0 where one is zero or holds a NaN.

    Args:
        output: A tensor ``(N, ...)``, or a structure, of which the logits or the first
            floating-point tensor count.
        teacher: The original's result on the same inputs.

    Returns:
        From -1 to 1; 0 where there are no samples.

    Raises:
        UsageError: There is no floating-point tensor, or the shapes differ.
    """
    return _mean_correlation(*_vectors(output, teacher))


def spearman(output: Any, teacher: Any) -> float:
    """The mean rank correlation between a subnet's result and the original's, over the samples.

    The elements of one sample's result are ranked; equal ones get the mean of their ranks. A sample
    counts as 1 where both results are constant, and as 0 where one is constant or holds a NaN.

    Args:
        output: A tensor ``(N, ...)``, or a structure, of which the logits or the first
            floating-point tensor count.
        teacher: The original's result on the same inputs.

    Returns:
        From -1 to 1; 0 where there are no samples.

    Raises:
        UsageError: There is no floating-point tensor, the shapes differ, or a sample has fewer
            than two elements.
    """
    ours, theirs = _vectors(output, teacher)
    if ours.shape[1] < 2:
        raise UsageError(
            "spearman needs at least two numbers a sample to rank",
            expected="results of two or more numbers for each sample",
            got=str(tuple(ours.shape)),
            fix="pass another metric",
        )
    return _mean_correlation(_ranks(ours), _ranks(theirs))


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


def _vectors(output: Any, teacher: Any) -> tuple[Tensor, Tensor]:
    ours, theirs = _main(output), _main(teacher)
    check_shapes(ours, theirs)
    # On the CPU, since some devices lack double precision.
    n = len(ours)
    width = ours.numel() // n if n else 0
    return ours.cpu().double().reshape(n, width), theirs.cpu().double().reshape(n, width)


def _main(value: Any) -> Tensor:
    """The logits, or the first floating-point tensor that has samples."""
    try:
        return logits_of(value)
    except UsageError:
        leaves, _ = trees.flatten(value)
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim():
            return leaf
    raise UsageError(
        "the model's result holds no floating-point vectors to compare",
        expected="a floating-point tensor (N, ...)",
        got=type(value).__name__,
        fix="pass a custom metric: metric=function of (result, target)",
    )


def _ranks(rows: Tensor) -> Tensor:
    """Ranks minus their mean; NaN in rows with a NaN."""
    found = torch.empty_like(rows)
    for ranks, row in zip(found, rows, strict=True):
        _, place, n = row.unique(return_inverse=True, return_counts=True)
        ranks[:] = (n.cumsum(0) - (n - 1) / 2)[place] - (len(row) + 1) / 2
    return found.masked_fill(rows.isnan().any(1, keepdim=True), float("nan"))


def _mean_correlation(ours: Tensor, theirs: Tensor) -> float:
    if not len(ours):
        return 0.0
    scales = [rows.abs().amax(1, keepdim=True) for rows in (ours, theirs)]
    ours, theirs = (
        rows / scale.masked_fill(scale == 0, 1.0)
        for rows, scale in zip((ours, theirs), scales, strict=True)
    )
    squares = ours.square().sum(1), theirs.square().sum(1)
    size = (squares[0] * squares[1]).sqrt()
    found = (ours * theirs).sum(1) / size.masked_fill(size == 0, 1.0)
    found = found.masked_fill((squares[0] == 0) & (squares[1] == 0), 1.0)
    return float(found.clamp(-1, 1).nan_to_num(0.0).mean())
