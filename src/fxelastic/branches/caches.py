"""Branches that keep a part of a layer's cache, or none of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fxelastic.branches.interval import Interval, NoBranchError
from fxelastic.branches.trainable import Trainable
from fxelastic.ir.graph_symbols import is_sum
from fxelastic.ir.partition import Partition
from fxelastic.ir.signature import batch_dims
from fxelastic.spec.cache import Cache, KeptCache

_ATEN = torch.ops.aten


def check_other_readers(partition: Partition, kept: KeptCache) -> None:
    """Check that nothing but the layer itself reads the past, apart from its other sizes.

    Raises:
        NoBranchError: An operator elsewhere needs the whole past.
    """
    for reader in partition.nodes[kept.past].users:
        if reader.name == kept.present:
            continue
        if reader.target is not _ATEN.sym_size.int or reader.args[1] == kept.dim:
            raise NoBranchError(f"{reader.name} reads the whole input {kept.past}, too")


def with_empty_caches(
    interval: Interval, copied: Trainable, caches: Sequence[Cache]
) -> tuple[Trainable, tuple[KeptCache, ...]]:
    """Let a branch return empty caches, for the layers that it replaces and does not compute.

    Args:
        interval: The interval of the branch.
        copied: The branch's graph, which changes in place. Its first input tells the number of new
            tokens.
        caches: The caches that it does not extend yet.

    Returns:
        The branch, whose last outputs are these presents, and what it keeps of each: nothing.

    Raises:
        NoBranchError: A cache can't be empty.
    """
    graph = copied.module.graph
    given = next(node for node in graph.nodes if node.op == "placeholder")
    output = next(node for node in graph.nodes if node.op == "output")
    result: Any = output.args[0]
    results = list(result) if isinstance(result, tuple) else [result]
    kept_all, context = [], list(copied.context)
    for cache in caches:
        kept = _nothing(interval.partition, cache)
        past = _placeholder(graph, cache.past)
        if past is None:
            last = [node for node in graph.nodes if node.op == "placeholder"][-1]
            with graph.inserting_after(last):
                past = graph.placeholder(cache.past)
            past.meta["val"] = interval.partition.value(cache.past)
            context.append(cache.past)
        dim = _new_tokens(interval.partition, cache, interval.inputs[0])
        with graph.inserting_before(output):
            results.append(_empty(graph, past, given, dim, kept, cache))
        kept_all.append(kept)
    output.args = (results[0] if len(results) == 1 else tuple(results),)
    copied.module.recompile()
    outputs = (*copied.outputs, *(cache.present for cache in caches))
    return replace(copied, context=tuple(context), outputs=outputs), tuple(kept_all)


def _placeholder(graph: fx.Graph, name: str) -> fx.Node | None:
    found = (node for node in graph.nodes if node.op == "placeholder" and node.name == name)
    return next(found, None)


def _nothing(partition: Partition, cache: Cache) -> KeptCache:
    """A cache without elements: without heads, if they are a dimension of their own."""
    fixed = _fixed_dims(partition.value(cache.past))
    if not fixed:
        raise NoBranchError(f"no dimension of {cache.past} has a fixed size")
    kept = KeptCache(cache.past, cache.present, fixed[0], ())
    check_other_readers(partition, kept)
    return kept


def _fixed_dims(value: torch.Tensor) -> list[int]:
    free = batch_dims(value)
    return [dim for dim in range(value.dim()) if dim not in free]


def _empty(
    graph: fx.Graph, past: fx.Node, given: fx.Node, dim: int, kept: KeptCache, cache: Cache
) -> fx.Node:
    """A past without elements, and as many new tokens behind it."""
    value = past.meta["val"]
    fixed = _fixed_dims(value)
    sizes: list[Any] = []
    for i in range(value.dim()):
        source, at = (given, dim) if i == cache.dim else (past, i)
        if i == kept.dim:
            sizes.append(0)
        elif i in fixed:
            sizes.append(int(value.shape[i]))
        else:
            sizes.append(graph.call_function(_ATEN.sym_size.int, (source, at)))
    new = graph.call_function(_ATEN.new_zeros.default, (past, sizes))
    return graph.call_function(_ATEN.cat.default, ([past, new], cache.dim))


def _new_tokens(partition: Partition, cache: Cache, operand: str) -> int:
    """The dimension of a value that counts the new tokens."""
    before, after = (partition.value(x).shape[cache.dim] for x in (cache.past, cache.present))
    sizes: Any = partition.value(operand).shape
    for i, size in enumerate(sizes):
        if is_sum(after, before, size):
            return i
    raise NoBranchError(f"{operand} does not tell how many tokens {cache.present} adds")
