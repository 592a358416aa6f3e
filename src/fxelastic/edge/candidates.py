"""The subnets of a pool that a device may serve."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypeAlias

import psutil

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.bundle_costs import with_bundle_costs
from fxelastic.edge.cascades.costs import costs_of_leaving, expected_costs
from fxelastic.edge.cascades.entry import CascadeEntry
from fxelastic.edge.executor import Array
from fxelastic.edge.int8_branches import unused_in
from fxelastic.edge.pool import SubnetPool
from fxelastic.errors import UsageError
from fxelastic.spec.cascade import Cascade, Servable
from fxelastic.spec.costs_by_size import Sizes
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.limits import Bound, Limits
from fxelastic.spec.options import is_number
from fxelastic.spec.pareto import ParetoTable
from fxelastic.spec.resources import LATENCY, WEIGHTS

logger = logging.getLogger(__name__)

MODES = ("auto", "assembled", "paged")

#: A pool, or other objects with ``arch``, ``latency_ms`` and ``accuracy``.
PoolLike: TypeAlias = SubnetPool | Iterable[Any]


@dataclass(frozen=True)
class Candidate:
    """A subnet or a cascade that may be served.

    Attributes:
        arch: The subnet, or the cascade.
        ms: Its estimated latency on the idle device, in ms; for a cascade, the mean over samples.
        accuracy: Its accuracy on the device's data; higher is better.
        others: Its cost in other resources, by the resource's name.
        leaving: For a cascade, the latency of a sample that leaves at each of its subnets, as a
            multiple of ``ms``; empty for a subnet, or if unknown.
    """

    arch: Servable
    ms: float
    accuracy: float
    others: Mapping[str, float] = field(default_factory=dict, compare=False)
    leaving: tuple[float, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, entry: Any) -> Candidate:
        """Create a candidate from a pool's entry, or from an object with the same attributes.

        Raises:
            UsageError: An attribute is missing.
        """
        missing = [n for n in ("arch", LATENCY, "accuracy") if not hasattr(entry, n)]
        if missing:
            raise UsageError(
                "an entry of the pool lacks " + " and ".join(missing),
                expected=f"objects with arch, {LATENCY} and accuracy, such as a PoolEntry",
                got=f"a {type(entry).__name__}",
                fix="pass result.pool of edge.search, or entries of it",
            )
        costs = dict(getattr(entry, "costs", {}))
        costs.pop(LATENCY, None)
        ms = getattr(entry, LATENCY)
        leaving = tuple(own / ms for own in getattr(entry, "leaving_ms", ()))
        return cls(entry.arch, ms, entry.accuracy, costs, leaving)

    def scale_of(self, left_at: Array) -> float:
        """The estimated latency of a batch whose samples left a cascade, as a multiple of ``ms``.

        Args:
            left_at: For each sample the number of the subnet that gave its result, ``(N,)``.
        """
        if not self.leaving or not len(left_at):
            return 1.0
        return math.fsum(self.leaving[i] for i in left_at.tolist()) / len(left_at)

    @property
    def latency_ms(self) -> float:
        """The same as ``ms``, under the name that a pool's entries use."""
        return self.ms

    @property
    def costs(self) -> dict[str, float]:
        """Its cost in each resource, by the resource's name."""
        return {**self.others, LATENCY: self.ms}


def sizes_of_pool(
    bundle: Bundle, pool: PoolLike, table: LatencyTable | None, sizes: Sizes | None = None
) -> tuple[Sizes, ...]:
    """The sizes of inputs that a pool's latencies are for; several for their mean.

    Args:
        bundle: The bundle.
        pool: The subnets.
        table: The device's latency table.
        sizes: The sizes that the caller's budget is for; None for those of the search, or else of
            the table or the example.

    Raises:
        UsageError: The table, or a pool without a table, does not hold for the sizes.
    """
    model = bundle.manifest.model
    own = tuple(pool.sizes) if isinstance(pool, SubnetPool) else ()
    if sizes is not None:
        if not isinstance(sizes, Mapping):
            raise UsageError(
                "sizes must be a mapping", expected="for example {'seq': 128}", got=repr(sizes)
            )
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, Integral):
                raise UsageError(f"{name} must be a whole number", got=repr(size))
        checked = {name: int(size) for name, size in sizes.items()}
        model.sizes_at(1, checked)
        if table is not None:
            table.at(checked)
        elif own and any(dict(known) != checked for known in own):
            raise UsageError(
                "the pool's latencies are for other sizes",
                expected="the latency table, or the sizes that the pool was searched for",
                got=f"sizes={checked}, and no table",
            )
        return (checked,)
    if own and (table is None or table.by_size is not None):
        return own
    if table is not None and table.sizes:
        return tuple(table.sizes)
    return ({symbol.name: symbol.example for symbol in model.sizes},) if model.sizes else ()


def table_at(table: LatencyTable, sizes: Sequence[Sizes]) -> LatencyTable:
    """The table whose costs are the means over inputs of these sizes, from `sizes_of_pool`."""
    return table if table.by_size is None else table.mean_over(sizes)


def candidates_of(
    bundle: Bundle,
    pool: PoolLike,
    table: LatencyTable | None,
    mode: str,
    memory_bytes: int | None = None,
    percentile: float | None = None,
) -> tuple[Candidate, ...]:
    """The subnets that may be served, with their latencies in a mode.

    Args:
        bundle: The bundle.
        pool: The subnets.
        table: The device's latency table. Its latencies replace those of a `SubnetPool`, because
            the table may have been corrected since the search, or the search was for another mode.
            If it has costs by size, it must be the result of `table_at`.
        mode: ``assembled`` or ``paged``.
        memory_bytes: Subnets with larger weights are left out; None for no limit.
        percentile: The latency of a cascade is this percentile over samples, from 0 to 100; None
            for the mean.

    Returns:
        The subnets, and the cascades of a `SubnetPool`. Decoders have no cascades: a sample that
        leaves early would leave the caches of later layers unfilled.

    Raises:
        UsageError: The pool or the table belongs to another bundle, an arch is not in the search
            space, no subnet fits into the memory, or each has an 8-bit branch that the device does
            not use.
    """
    if table is not None:
        table.check_bundle(bundle.digest, lambda: bundle.structure_digest)
    if isinstance(pool, SubnetPool):
        pool.check_bundle(bundle.digest)
    costs = None
    if table is not None and isinstance(pool, SubnetPool):
        # Tables of earlier versions lack some of the costs that follow from the bundle.
        costs = with_bundle_costs(table, bundle).costs_of(mode)
    found: list[Candidate] = []
    left_out: dict[str, str] = {}
    slow = {} if table is None else unused_in(bundle, table, mode)
    for entry in _entries(bundle, pool):
        candidate = Candidate.of(entry)
        arch = candidate.arch
        _validate(bundle, arch)
        reasons = {branch: slow[branch] for branch in arch if branch in slow}
        if reasons:
            left_out.update(reasons)
            continue
        others = {WEIGHTS: _weight_bytes(bundle, arch), **candidate.others}
        ms, leaving = candidate.ms, candidate.leaving
        if costs is not None:
            if isinstance(entry, CascadeEntry):
                others.update(expected_costs(costs, entry.cascade, entry.coverage))
                left = costs_of_leaving(costs[LATENCY], entry.cascade)
                leaving = tuple(own / others[LATENCY] for own in left)
            else:
                others.update(costs.predict(arch))
            ms = others.pop(LATENCY)
        if percentile is not None and isinstance(entry, CascadeEntry) and leaving:
            share = _at_percentile(leaving, entry.coverage, percentile)
            ms, leaving = share * ms, tuple(own / share for own in leaving)
        found.append(Candidate(arch, ms, candidate.accuracy, others, leaving))
    if left_out:
        _warn_of(left_out, none_left=not found)
    if memory_bytes is None or not found:
        return tuple(found)
    fitting = tuple(c for c in found if _weight_bytes(bundle, c.arch) <= memory_bytes)
    if not fitting:
        least = min(_weight_bytes(bundle, c.arch) for c in found)
        raise UsageError(
            "memory_bytes is too small for every subnet of the pool",
            expected=f"at least {least:,} bytes",
            got=f"{memory_bytes:,} bytes",
        )
    return fitting


def _at_percentile(values: Sequence[float], shares: Sequence[float], percentile: float) -> float:
    """The least of ascending values that this percentage of samples does not exceed."""
    total = 0.0
    for value, share in zip(values, shares, strict=True):
        total += share
        if 100 * total >= percentile:
            return value
    return values[-1]


def _entries(bundle: Bundle, pool: PoolLike) -> Iterable[Any]:
    """The entries of a pool, with its cascades if they can be served."""
    if not isinstance(pool, SubnetPool) or bundle.manifest.caches:
        return pool
    return (*pool, *(found for found in pool.cascades if math.isfinite(found.accuracy)))


def _validate(bundle: Bundle, arch: Servable) -> None:
    if isinstance(arch, Cascade):
        arch.validate(bundle.space)
    else:
        bundle.space.validate(arch)


def _warn_of(left_out: Mapping[str, str], *, none_left: bool) -> None:
    branch, reason = next(iter(left_out.items()))
    if none_left:
        raise UsageError(
            "every subnet of the pool has an 8-bit branch that this device does not use",
            expected="a subnet whose 8-bit branches are faster than their float branches",
            got=f"{branch}: {reason}",
            fix="search with this table: edge.search(bundle, table, data)",
        )
    logger.warning(
        "subnets with 8-bit branches that this device does not use are left out: %s: %s",
        branch,
        reason,
    )


def choose_mode(bundle: Bundle, pool: PoolLike, mode: str, memory_bytes: int | None) -> str:
    """The mode to serve in; ``auto`` means assembled if two subnets fit into the memory at once.

    A switch needs the memory of both subnets if they share no weights.

    Args:
        bundle: The bundle.
        pool: The subnets.
        mode: One of `MODES`.
        memory_bytes: The memory for weights; None means half of the free memory.

    Raises:
        UsageError: The mode is unknown, or ``memory_bytes`` is out of range.
    """
    if mode not in MODES:
        raise UsageError(f"unknown mode {mode!r}", expected=", ".join(MODES), got=repr(mode))
    if memory_bytes is not None and not (is_number(memory_bytes) and memory_bytes > 0):
        raise UsageError(
            "memory_bytes must be above 0", expected="a number of bytes", got=str(memory_bytes)
        )
    if mode != "auto":
        return mode
    best = ParetoTable(map(Candidate.of, _entries(bundle, pool)))
    for candidate in best:
        _validate(bundle, candidate.arch)
    sizes = sorted(_weight_bytes(bundle, candidate.arch) for candidate in best)
    room = psutil.virtual_memory().available // 2 if memory_bytes is None else memory_bytes
    return "assembled" if sum(sizes[-2:]) <= room else "paged"


def absolute_limits(
    limits: Mapping[str, Bound] | None,
    bundle: Bundle,
    table: LatencyTable | None,
    candidates: Iterable[Candidate],
    mode: str,
) -> Limits | None:
    """Convert limits to absolute bounds; drops the latency, which the budget bounds.

    Args:
        limits: Bounds by resource; shares are relative to the original's costs.
        bundle: The bundle.
        table: The device's costs, if known.
        candidates: The subnets of the pool; the original may be among them.
        mode: ``assembled`` or ``paged``.

    Returns:
        The limits; None if there are none.

    Raises:
        UsageError: A bound is out of range, or a share's resource is unknown for the original.
    """
    bounds = dict(Limits(limits)) if limits else {}
    bounds.pop(LATENCY, None)
    if not bounds:
        return None
    original = bundle.space.original
    costs: dict[str, float] = {WEIGHTS: _weight_bytes(bundle, original)}
    if table is not None:
        costs.update(with_bundle_costs(table, bundle).predict(original, mode=mode))
    for candidate in candidates:
        if candidate.arch == original:
            costs.update(candidate.costs)
    return Limits(bounds).absolute(costs)


def _weight_bytes(bundle: Bundle, arch: Servable) -> int:
    return sum(bundle.segment(branch).weight_bytes for branch in arch)
