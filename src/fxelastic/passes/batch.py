"""Which dimensions of the example inputs are the batch."""

from __future__ import annotations

from typing import Any

import torch

from fxelastic.ir import trees


def batch_leaves(leaves: list[Any]) -> list[int]:
    """Positions of the inputs whose first dimension is the batch.

    The batch size is the first dimension of the first tensor that has one; every input with the
    same first dimension is taken to be batched.
    """
    size = next(
        (leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim() > 0),
        None,
    )
    if not size:
        return []
    return [
        i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == size
    ]


def with_batch_size(leaves: list[Any], batched: list[int], size: int) -> list[Any]:
    """The same inputs with another batch size: samples are repeated in turn, or dropped.

    ``torch.export`` specialises a dimension of size 1, so an example of one sample is captured
    with two.
    """
    result = list(leaves)
    for i in batched:
        leaf = leaves[i]
        index = torch.arange(size, device=leaf.device) % leaf.shape[0]
        result[i] = leaf.detach().index_select(0, index).requires_grad_(leaf.requires_grad)
    return result


def copies(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same inputs in memory of their own, detached, with their ``requires_grad``."""
    leaves, tree = trees.flatten((args, kwargs))
    own = [
        leaf.detach().clone().requires_grad_(leaf.requires_grad)
        if isinstance(leaf, torch.Tensor)
        else leaf
        for leaf in leaves
    ]
    result: tuple[tuple[Any, ...], dict[str, Any]] = trees.unflatten(tree, own)
    return result
