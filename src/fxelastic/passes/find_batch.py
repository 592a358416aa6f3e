"""Find out which inputs hold samples, by running the model with other numbers of rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import nn

from fxelastic.ir import trees
from fxelastic.passes.batch import Batch, with_batch_size

logger = logging.getLogger(__name__)

# Up to so many inputs, every set of them is tried.
_MANY = 5

#: The shapes of a model's flat results.
_Shapes = list[tuple[int, ...]]


def find_batch(model: nn.Module, args: Any, kwargs: Any, results: Sequence[Any]) -> Batch:
    """Find the inputs that hold samples in their first dimension.

    Candidates are all inputs with as many rows as the first input whose number of rows decides the
    first size of a result; without such an input, as the first that has its first size in common
    with a result, else as the first input. If the model runs with more rows in some candidates
    alone, it does not tie these to the others. The batch is then the group whose rows a result has
    in dimension 0, and the other inputs keep their rows. A result over two groups, such as scores
    of images by texts, makes the first group the batch. Several groups with a result each (two
    towers) count as one batch.

    Args:
        model: The model, safe to run.
        args: Positional example inputs, which it runs on.
        kwargs: Keyword example inputs.
        results: Its flat results for these.
    """
    leaves, tree = trees.flatten((args, kwargs))
    positions = _candidates(model, tree, leaves, results)
    if len(positions) < 2:
        return Batch(positions)
    n_rows = leaves[positions[0]].shape[0]
    if n_rows == 1:
        # One row broadcasts, and every input of one row may hold the one sample.
        n_rows, row = 2, _row_of_one(model, tree, leaves, positions)
        if row is not None:
            positions = tuple(i for i in positions if i != row)
            found = _tied(model, tree, leaves, positions, n_rows)
            return Batch(found.positions, tuple(sorted((row, *found.rows))), found.untied)
    return _tied(model, tree, leaves, positions, n_rows)


def _candidates(
    model: nn.Module, tree: trees.Tree, leaves: list[Any], results: Sequence[Any]
) -> tuple[int, ...]:
    """The inputs with as many rows as there are samples."""
    groups: dict[int, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if _has_rows(leaf) and leaf.shape[0]:
            groups.setdefault(leaf.shape[0], []).append(i)
    if not groups:
        return ()
    returned = [r.shape[0] if _has_rows(r) else None for r in results]

    def decides(size: int) -> bool:
        # Some models take two frames at a time, and run with twice as many, but not with one more.
        for n in (size + 1, 2 * size):
            shapes = _shapes(model, tree, with_batch_size(leaves, groups[size], n))
            if shapes is not None and len(shapes) == len(returned):
                firsts = [shape[0] if shape else None for shape in shapes]
                return firsts != returned
        return False

    found = next(filter(decides, groups), None) if len(groups) > 1 else None
    if found is None:
        found = next((size for size in groups if size in returned), next(iter(groups)))
    return tuple(groups[found])


def _has_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _row_of_one(
    model: nn.Module, tree: trees.Tree, leaves: list[Any], positions: Sequence[int]
) -> int | None:
    """The input that the model takes only with a single row, if there is one."""
    if _shapes(model, tree, with_batch_size(leaves, positions, 2)) is not None:
        return None
    for row in positions:
        others = [i for i in positions if i != row]
        if _shapes(model, tree, with_batch_size(leaves, others, 2)) is not None:
            return row
    return None


def _tied(
    model: nn.Module, tree: trees.Tree, leaves: list[Any], positions: tuple[int, ...], n_rows: int
) -> Batch:
    """The batch among inputs with as many rows each."""
    leaves = with_batch_size(leaves, positions, n_rows)
    telling = [_telling(leaf) if i in positions else leaf for i, leaf in enumerate(leaves)]
    shapes = _shapes(model, tree, telling)
    if shapes is None:
        shapes = _shapes(model, tree, leaves)
    else:
        leaves = telling

    def grown(some: Sequence[int]) -> _Shapes | None:
        found = _shapes(model, tree, with_batch_size(leaves, some, n_rows + 1))
        same = found is not None and shapes is not None and len(found) == len(shapes)
        return found if same else None

    groups = _groups(positions, grown)
    if shapes is None or not groups:
        return Batch(positions)
    ordered = sorted(groups)
    # For each result and each group, the dimensions that change with the group's rows.
    follows = [
        [_changed(shapes[r], groups[group][r]) for group in ordered] for r in range(len(shapes))
    ]
    every = range(len(ordered))
    leading = [g for g in every if any(0 in dims[g] for dims in follows)]
    if not leading and sum(map(len, ordered)) < len(positions):
        return Batch(positions)  # some inputs fix their rows; the results don't show which
    leading = leading or [0]
    crossed = any(
        0 in dims[a] and dims[b] - {0} for dims in follows for a in every for b in every if a != b
    )
    chosen = leading[:1] if crossed else leading
    found = tuple(sorted(i for g in chosen for i in ordered[g]))
    return Batch(found, tuple(i for i in positions if i not in found), untied=len(chosen) > 1)


def _telling(value: Any) -> Any:
    """Other values for an input that is the same everywhere: a model may skip a mask of ones."""
    if not isinstance(value, torch.Tensor) or value.dim() < 2 or not value.numel():
        return value
    if not bool((value == value.flatten()[0]).all()):
        return value
    other = value.detach().clone()
    other[..., value.shape[-1] // 2 :] = 0
    return other


def _groups(
    positions: Sequence[int], grown: Callable[[Sequence[int]], _Shapes | None]
) -> dict[tuple[int, ...], _Shapes]:
    """The inputs that can have more rows together without the others, with the results' shapes."""
    groups: dict[tuple[int, ...], _Shapes] = {}

    def rest() -> tuple[int, ...]:
        return tuple(i for i in positions if not any(i in group for group in groups))

    for some in _sets(positions):
        found = grown(some) if set(some) <= set(rest()) else None
        if found is not None:
            groups[some] = found
    if not groups or not rest():
        return groups
    # A group may run with more rows than the others while the others don't run with more than it.
    for with_group in ((), *groups):
        together = tuple(sorted((*rest(), *with_group)))
        found = grown(together)
        if found is not None:
            groups.pop(with_group, None)
            return {**groups, together: found}
    # An input that can't have more rows, alone or with others, keeps them, as a causal mask does.
    return groups if grown(positions) is None else {}


def _sets(positions: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Sets of inputs that may be tied to one another, the smaller ones first.

    Of many inputs only those that stand side by side, as the mask beside its sequence does.
    """
    n = len(positions)
    for size in range(1, n):
        if n <= _MANY:
            yield from combinations(positions, size)
        elif size <= 2:
            yield from (tuple(positions[i : i + size]) for i in range(n - size + 1))
        else:
            yield tuple(positions[:size])


def _changed(before: tuple[int, ...], after: tuple[int, ...]) -> set[int]:
    """The dimensions in which a result has another size."""
    return {dim for dim, (a, b) in enumerate(zip(before, after, strict=False)) if a != b}


def _shapes(model: nn.Module, tree: trees.Tree, leaves: list[Any]) -> _Shapes | None:
    """The shapes of the results; None where the model does not run."""
    own = [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    args, kwargs = trees.unflatten(tree, own)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            results, _ = trees.flatten(model(*args, **kwargs))
    except Exception as e:  # noqa: BLE001  # the user's own code
        logger.debug("the model does not run with other numbers of rows: %s", e)
        return None
    return [tuple(r.shape) if isinstance(r, torch.Tensor) else () for r in results]
