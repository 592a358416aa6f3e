"""The subnets of a pool that a device may serve."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import psutil

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.bundle_costs import with_bundle_costs
from fxelastic.edge.int8_branches import unused_in
from fxelastic.edge.pool import SubnetPool
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.costs_by_size import Sizes
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.limits import Bound, Limits
from fxelastic.spec.pareto import ParetoTable
from fxelastic.spec.resources import LATENCY, WEIGHTS

logger = logging.getLogger(__name__)

MODES = ("auto", "assembled", "paged")

#: A pool, or other objects with ``arch``, ``latency_ms`` and ``accuracy``.
PoolLike: TypeAlias = SubnetPool | Iterable[Any]


@dataclass(frozen=True)
class Candidate:
    """A subnet that may be served.

    Attributes:
        arch: The subnet.
        ms: Its estimated latency on the idle device, in ms.
        accuracy: Its accuracy on the device's data; higher is better.
        others: Its cost in other resources, by the resource's name.
    """

    arch: Arch
    ms: float
    accuracy: float
    others: Mapping[str, float] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, entry: Any) -> Candidate:
        """Create a candidate from a pool's entry, or from an object with the same attributes."""
        costs = dict(getattr(entry, "costs", {}))
        costs.pop(LATENCY, None)
        return cls(entry.arch, getattr(entry, LATENCY), entry.accuracy, costs)

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

    Raises:
        UsageError: The pool or the table belongs to another bundle, an arch is not in the search
            space, no subnet fits into the memory, or each has an 8-bit branch that the device does
            not use.
    """
    if table is not None:
        table.check_bundle(bundle.digest, lambda: bundle.structure_digest)
    if isinstance(pool, SubnetPool):
        pool.check_bundle(bundle.digest)
    costs_of = None
    if table is not None and isinstance(pool, SubnetPool):
        # Tables of earlier versions lack some of the costs that follow from the bundle.
        costs_of = with_bundle_costs(table, bundle).predict
    found: list[Candidate] = []
    left_out: dict[str, str] = {}
    slow = {} if table is None else unused_in(bundle, table, mode)
    for entry in pool:
        candidate = Candidate.of(entry)
        arch = candidate.arch
        bundle.space.validate(arch)
        reasons = {branch: slow[branch] for branch in arch if branch in slow}
        if reasons:
            left_out.update(reasons)
            continue
        others = {WEIGHTS: _weight_bytes(bundle, arch), **candidate.others}
        ms = candidate.ms
        if costs_of is not None:
            others.update(costs_of(arch, mode=mode))
            ms = others.pop(LATENCY)
        found.append(Candidate(arch, ms, candidate.accuracy, others))
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
    if memory_bytes is not None and memory_bytes <= 0:
        raise UsageError(
            "memory_bytes must be above 0", expected="a number of bytes", got=str(memory_bytes)
        )
    if mode != "auto":
        return mode
    best = ParetoTable(map(Candidate.of, pool))
    for candidate in best:
        bundle.space.validate(candidate.arch)
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


def _weight_bytes(bundle: Bundle, arch: Arch) -> int:
    return sum(bundle.segment(branch).weight_bytes for branch in arch)
