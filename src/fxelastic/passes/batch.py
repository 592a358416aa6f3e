"""Which dimensions of the example inputs are the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxelastic.errors import UsageError
from fxelastic.ir import trees
from fxelastic.ir.value_names import value_names


@dataclass(frozen=True)
class Batch:
    """The inputs that hold samples in their first dimension.

    Attributes:
        positions: Their positions among the flat inputs.
        rows: Positions of inputs that have as many rows as there are samples, while the model does
            not tie their rows to the samples.
        untied: Whether the model does not tie all inputs in ``positions`` to each other.
    """

    positions: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    untied: bool = False


def batch_by_name(
    batched: str | Sequence[str], arguments: trees.Tree, leaves: Sequence[Any]
) -> Batch:
    """The inputs that a user says hold samples.

    Args:
        batched: Names of inputs; the name of an argument of several tensors stands for all.
        arguments: Structure of the arguments by name.
        leaves: The flat inputs.

    Raises:
        UsageError: A name is not an input's, an input has no first dimension, or two of them hold
            different numbers of samples.
    """
    given = [batched] if isinstance(batched, str) else batched
    if not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        raise UsageError(
            "batched must be names of inputs",
            expected="a sequence of names, such as batched=('x', 'mask')",
            got=repr(batched),
            fix="pass the names of forward's arguments, or leave batched out",
        )
    names, paths = value_names(arguments), trees.leaf_paths(arguments)
    found: set[int] = set()
    for name in given:
        exact = [i for i, own in enumerate(names) if own == name]
        inside = exact or [i for i, path in enumerate(paths) if _stands_for(name, path)]
        if not inside:
            raise UsageError(
                f"batched names {name!r}, which is not an input of the model",
                expected=f"names among {', '.join(names) or 'no inputs'}",
                got=repr(name),
                fix="use one of these names, or leave batched out",
            )
        found.update(inside)
    positions = sorted(found)
    for i in positions:
        if not isinstance(leaves[i], torch.Tensor) or not leaves[i].dim():
            raise UsageError(
                f"batched names {names[i]!r}, which has no dimension for samples",
                expected="tensors with at least one dimension",
                got="a tensor without dimensions",
                fix=f"leave {names[i]!r} out; every call passes it whole",
            )
        size, first = leaves[i].shape[0], leaves[positions[0]].shape[0]
        if size != first:
            raise UsageError(
                "the inputs that batched names hold different numbers of samples",
                expected=f"{first} in each, as in {names[positions[0]]!r}",
                got=f"{size} in {names[i]!r}",
                fix="pass example inputs with equally many samples",
            )
    return Batch(tuple(positions))


def _stands_for(name: str, path: tuple[str, ...]) -> bool:
    """Whether a name denotes a container on the path to a tensor: ``b`` or ``b_c``."""
    return name in ("_".join(path[:depth]) for depth in range(1, len(path)))


def with_batch_size(leaves: list[Any], batched: Sequence[int], size: int) -> list[Any]:
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
