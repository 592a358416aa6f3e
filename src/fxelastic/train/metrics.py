"""Scores of a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fxelastic.train.losses import IGNORED, class_dim, is_empty, logits_of


def accuracy(output: Any, target: Tensor) -> float:
    """The share of elements whose highest logit is the target's class.

    Args:
        output: Logits, or a result that holds them: see `logits_of`.
        target: Class numbers ``(N, ...)``; -100 leaves an element out.

    Returns:
        From 0 to 1; 0 where every element is left out.

    Raises:
        UsageError: There are no logits, or the shapes do not go together.
    """
    logits = logits_of(output)
    found = logits.argmax(class_dim(logits, target))
    counted = target != IGNORED
    n = int(counted.sum())
    return int(((found == target) & counted).sum()) / n if n else 0.0


def counts(target: Any) -> bool:
    """Whether a target, class numbers or the original's result, has an element to be scored."""
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
        UsageError: There are no logits.
    """
    logits, like = logits_of(output), logits_of(teacher)
    dim = 2 if logits.dim() == 3 else 1
    same = logits.argmax(dim) == like.argmax(dim)
    return float(same.float().mean()) if same.numel() else 0.0
