"""The batch: the inputs that hold samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
from torch import nn

from fxelastic.errors import UsageError
from fxelastic.ir import trees
from fxelastic.ir.value_names import value_names


@dataclass(frozen=True)
class BatchedInputs:
    """The inputs that hold samples.

    Attributes:
        dims: The dimension of the samples, by the inputs' positions among the flat inputs.
        rows: Positions of inputs that have as many rows as there are samples, but whose rows the
            model does not tie to the samples.
        untied: Whether the model does not tie all inputs in ``dims`` to each other.
        why: Why these inputs count as the batch, as a clause.
    """

    dims: Mapping[int, int] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    untied: bool = False
    why: str = ""

    def with_rows(self, rows: Collection[int]) -> BatchedInputs:
        """The same with some of ``rows`` as inputs that hold samples."""
        dims = dict(sorted({**self.dims, **dict.fromkeys(rows, 0)}.items()))
        return replace(self, dims=dims, rows=tuple(i for i in self.rows if i not in rows))

    def without(self, excluded: Collection[int]) -> BatchedInputs:
        """The same without some inputs."""
        return replace(
            self,
            dims={i: dim for i, dim in self.dims.items() if i not in excluded},
            rows=tuple(i for i in self.rows if i not in excluded),
        )


def _rows(
    positions: Iterable[int], rows: Sequence[int] = (), untied: bool = False
) -> BatchedInputs:
    """Inputs whose samples are in dimension 0."""
    return BatchedInputs(dict.fromkeys(sorted(positions), 0), tuple(sorted(rows)), untied)


def batch_by_name(
    batched: str | Sequence[str],
    arguments: trees.Tree,
    leaves: Sequence[Any],
    dims: Mapping[int, int],
) -> BatchedInputs:
    """The inputs that the user names.

    Args:
        batched: Names of inputs; the name of an argument with several tensors means all of them.
        arguments: Structure of the arguments by name.
        leaves: The flat inputs.
        dims: The dimension of the samples, by the inputs' positions; 0 for those without an entry.

    Raises:
        UsageError: A name is not the name of an input, an input has no dimension, or two inputs
            hold different numbers of samples.
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
        size, first = (leaves[j].shape[dims.get(j, 0)] for j in (i, positions[0]))
        if size != first:
            raise UsageError(
                "the inputs that batched names hold different numbers of samples",
                expected=f"{first} in each, as in {names[positions[0]]!r}",
                got=f"{size} in {names[i]!r}",
                fix="pass example inputs with equally many samples",
            )
    return BatchedInputs({i: dims.get(i, 0) for i in positions}, why="batched= names them")


def _stands_for(name: str, path: tuple[str, ...]) -> bool:
    """Whether a name denotes a container on the path to a tensor: ``b`` or ``b_c``."""
    return name in ("_".join(path[:depth]) for depth in range(1, len(path)))


def with_batch_size(leaves: list[Any], batched: Sequence[int], size: int) -> list[Any]:
    """The same inputs with another batch size: samples are repeated in turn, or dropped.

    ``torch.export`` specialises a dimension of size 1, so a single sample is captured as two.
    """
    result = list(leaves)
    for i in batched:
        leaf = leaves[i]
        index = torch.arange(size, device=leaf.device) % leaf.shape[0]
        result[i] = leaf.detach().index_select(0, index).requires_grad_(leaf.requires_grad)
    return result


def copies(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Detached copies of the inputs, with the same ``requires_grad``."""
    leaves, tree = trees.flatten((args, kwargs))
    own = [
        leaf.detach().clone().requires_grad_(leaf.requires_grad)
        if isinstance(leaf, torch.Tensor)
        else leaf
        for leaf in leaves
    ]
    result: tuple[tuple[Any, ...], dict[str, Any]] = trees.unflatten(tree, own)
    return result


logger = logging.getLogger(__name__)

# With up to this many inputs, every set of inputs is tried.
_MANY = 5

#: The shapes of a model's flat results.
_Shapes = list[tuple[int, ...]]


def find_batch(
    model: nn.Module,
    args: Any,
    kwargs: Any,
    results: Sequence[Any],
    without: Collection[int] = (),
) -> BatchedInputs:
    """Find the inputs that hold samples in their first dimension.

    Candidates are all inputs with as many rows as the first input whose number of rows decides the
    first size of a result. Without such an input, the first input that has its first size in common
    with a result counts, else the first input. If the model runs with more rows in some candidates
    alone, it does not tie them to the others. The batch is then the group whose rows are dimension
    0 of a result, and the other inputs keep their rows. If a result spans two groups, such as
    scores of images by texts, the first group is the batch. Several groups with a result each (two
    towers) count as one batch.

    Args:
        model: The model, safe to run.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        results: Its flat results for these inputs.
        without: Positions of inputs that hold no samples.
    """
    leaves, tree = trees.flatten((args, kwargs))
    positions, why = _candidates(model, tree, leaves, results, without)
    if len(positions) < 2:
        return replace(_rows(positions), why=why)
    n_rows, row = leaves[positions[0]].shape[0], None
    if n_rows == 1:
        # One row broadcasts, and every input of one row may hold the one sample.
        n_rows, row = 2, _row_of_one(model, tree, leaves, positions)
        positions = tuple(i for i in positions if i != row)
    found = _tied(model, tree, leaves, positions, n_rows)
    rows = found.rows if row is None else tuple(sorted((row, *found.rows)))
    return replace(found, rows=rows, why=why)


def _candidates(
    model: nn.Module,
    tree: trees.Tree,
    leaves: list[Any],
    results: Sequence[Any],
    without: Collection[int],
) -> tuple[tuple[int, ...], str]:
    """The inputs with as many rows as there are samples, and why these."""
    groups: dict[int, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if i not in without and _has_rows(leaf) and leaf.shape[0]:
            groups.setdefault(leaf.shape[0], []).append(i)
    if not groups:
        return (), ""
    returned = [r.shape[0] if _has_rows(r) else None for r in results]

    def decides(size: int) -> bool:
        # Some models take two frames at a time: they run with twice as many rows, not with one
        # more.
        for n in (size + 1, 2 * size):
            shapes = _shapes(model, tree, with_batch_size(leaves, groups[size], n))
            if shapes is not None and len(shapes) == len(returned):
                firsts = [shape[0] if shape else None for shape in shapes]
                return firsts != returned
        return False

    found = next(filter(decides, groups), None) if len(groups) > 1 else None
    if found is not None:
        return tuple(groups[found]), "their rows decide the rows of a result"
    found = next((size for size in groups if size in returned), None)
    if found is not None:
        return tuple(groups[found]), "a result has as many rows"
    return tuple(next(iter(groups.values()))), "the first input has as many rows"


def _has_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _row_of_one(
    model: nn.Module, tree: trees.Tree, leaves: list[Any], positions: Sequence[int]
) -> int | None:
    """The input that the model takes only with a single row, or None."""
    if _shapes(model, tree, with_batch_size(leaves, positions, 2)) is not None:
        return None
    for row in positions:
        others = [i for i in positions if i != row]
        if _shapes(model, tree, with_batch_size(leaves, others, 2)) is not None:
            return row
    return None


def _tied(
    model: nn.Module, tree: trees.Tree, leaves: list[Any], positions: tuple[int, ...], n_rows: int
) -> BatchedInputs:
    """The batch among inputs with the same number of rows."""
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
        return _rows(positions)
    ordered = sorted(groups)
    # For each result and each group, the dimensions that change with the group's rows.
    follows = [
        [_changed(shapes[r], groups[group][r]) for group in ordered] for r in range(len(shapes))
    ]
    every = range(len(ordered))
    leading = [g for g in every if any(0 in dims[g] for dims in follows)]
    if not leading and sum(map(len, ordered)) < len(positions):
        # Some inputs fix their rows, but the results don't show which.
        return _rows(positions)
    leading = leading or [0]
    crossed = any(
        0 in dims[a] and dims[b] - {0} for dims in follows for a in every for b in every if a != b
    )
    chosen = leading[:1] if crossed else leading
    found = [i for g in chosen for i in ordered[g]]
    return _rows(found, [i for i in positions if i not in found], untied=len(chosen) > 1)


def _telling(value: Any) -> Any:
    """Other values for a constant input, since a model may skip a mask of ones."""
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
    """Groups of inputs that can have more rows without the others, with the results' shapes."""
    groups: dict[tuple[int, ...], _Shapes] = {}

    def rest() -> tuple[int, ...]:
        return tuple(i for i in positions if not any(i in group for group in groups))

    for some in _sets(positions):
        found = grown(some) if set(some) <= set(rest()) else None
        if found is not None:
            groups[some] = found
    if not groups or not rest():
        return groups
    # A group may run with more rows than the others, though the others don't without the group.
    for with_group in ((), *groups):
        together = tuple(sorted((*rest(), *with_group)))
        found = grown(together)
        if found is not None:
            groups.pop(with_group, None)
            return {**groups, together: found}
    # An input that can't have more rows, alone or with others, keeps its rows, as a causal mask
    # does.
    return groups if grown(positions) is None else {}


def _sets(positions: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Sets of inputs that may be tied to one another, smaller sets first.

    Among many inputs only neighbours are tried, such as a sequence and its mask.
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
    """The dimensions of a result whose size differs."""
    return {dim for dim, (a, b) in enumerate(zip(before, after, strict=False)) if a != b}


def _shapes(model: nn.Module, tree: trees.Tree, leaves: list[Any]) -> _Shapes | None:
    """The shapes of the results; None if the model does not run."""
    own = [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    args, kwargs = trees.unflatten(tree, own)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            results, _ = trees.flatten(model(*args, **kwargs))
    except Exception as e:  # noqa: BLE001  # the user's own code
        logger.debug("the model does not run with other numbers of rows: %s", e)
        return None
    return [tuple(r.shape) if isinstance(r, torch.Tensor) else () for r in results]
