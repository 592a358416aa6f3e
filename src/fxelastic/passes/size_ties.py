"""Find the sizes of a model's inputs that can only vary together."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fxelastic.ir import trees
from fxelastic.passes.dynamic_shapes import DynamicDim, DynamicShapes, SizeSum, resized

logger = logging.getLogger(__name__)


def with_ties(
    model: nn.Module, tree: trees.Tree, leaves: Sequence[Any], shapes: DynamicShapes
) -> DynamicShapes:
    """Replace sizes that the model ties to others.

    A mask of past and new tokens has the length of both together, whatever the user calls it. Sizes
    that the user leaves to torch (``Dim.AUTO``) may be equal. A model tells by running or not: with
    one more of some sizes, and of others with them.

    Args:
        model: The clone for the capture.
        tree: Structure of the inputs.
        leaves: The flat example inputs. Sizes that differ in the example are told apart best.
        shapes: Which dimensions vary.

    Returns:
        The same with fewer symbols: equal ones have one name, and sums are sums.
    """
    run = _Runs(model, tree, leaves, shapes)
    names = [name for name in shapes.symbols if name != shapes.batch]
    tied = [name for name in names if len(names) > 1 and not run.grows({name})]
    groups: dict[int, list[str]] = {}
    for name in tied:
        if shapes.symbols[name].max != shapes.symbols[name].example:
            groups.setdefault(shapes.symbols[name].example, []).append(name)
    same: dict[str, str] = {}
    sums: dict[str, set[frozenset[str]]] = {}
    for group in groups.values():
        members = group if shapes.hints.issuperset(group[1:]) else group[:1]
        for total, other in _options(shapes, members, names, tied):
            if run.grows({*members, *total}):
                same |= dict.fromkeys(members[1:], members[0])
                if total:
                    sums.setdefault(total[0], set()).add(frozenset((members[0], other)))
                break
    for name, first in same.items():
        shapes = _renamed(shapes, name, first)
    for name, terms in sums.items():
        found = {frozenset(same.get(term, term) for term in pair) for pair in terms}
        if len(found) == 1 and name in shapes.symbols:
            (pair,) = found
            ordered = tuple(n for n in shapes.symbols if n in pair)
            if len(ordered) == len(pair) == 2:
                shapes = _summed(shapes, name, SizeSum(ordered))
    return shapes


def _options(
    shapes: DynamicShapes, members: Sequence[str], names: Sequence[str], tied: Sequence[str]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """What may grow with some symbols: nothing, or the sum of these and another symbol."""
    if len(members) > 1:
        yield (), ""
    sizes = {name: symbol.example for name, symbol in shapes.symbols.items()}
    for total in tied:
        for other in names:
            if total in members or other in (*members, total):
                continue
            if sizes[total] == sizes[members[0]] + sizes[other]:
                yield (total,), other


class _Runs:
    """Runs a model at other sizes."""

    def __init__(
        self, model: nn.Module, tree: trees.Tree, leaves: Sequence[Any], shapes: DynamicShapes
    ) -> None:
        self._model = model
        self._tree = tree
        self._leaves = leaves
        self._shapes = shapes

    def grows(self, names: set[str]) -> bool:
        """Whether the model runs with one and with two more of these sizes."""
        example = self._shapes.example
        return all(self._at({name: example[name] + n for name in names}) for n in (1, 2))

    def _at(self, sizes: Mapping[str, int]) -> bool:
        leaves = resized(self._leaves, self._shapes, sizes)
        own = [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in leaves]
        args, kwargs = trees.unflatten(self._tree, own)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self._model(*args, **kwargs)
        except Exception as e:  # noqa: BLE001  # the user's own code
            logger.debug("the model does not run at %s: %s", dict(sizes), e)
            return False
        return True


def _renamed(shapes: DynamicShapes, name: str, first: str) -> DynamicShapes:
    """The same with one symbol for two."""
    dims = tuple(
        {i: replace(dim, symbol=first) if dim.symbol == name else dim for i, dim in own.items()}
        for own in shapes.dims
    )
    return replace(shapes, dims=dims, symbols=_others(shapes, name))


def _summed(shapes: DynamicShapes, name: str, total: SizeSum) -> DynamicShapes:
    """The same with a sum in the place of a symbol."""
    sums = {i: dict(own) for i, own in shapes.sums.items()}
    dims: list[dict[int, DynamicDim]] = []
    for i, own in enumerate(shapes.dims):
        dims.append({dim: size for dim, size in own.items() if size.symbol != name})
        for dim, size in own.items():
            if size.symbol == name:
                offset = size.offset + total.offset
                sums.setdefault(i, {})[dim] = replace(total, offset=offset)
    return replace(shapes, dims=tuple(dims), symbols=_others(shapes, name), sums=sums)


def _others(shapes: DynamicShapes, name: str) -> dict[str, Any]:
    return {key: symbol for key, symbol in shapes.symbols.items() if key != name}
