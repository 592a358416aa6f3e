"""Find the table, of those measured on other devices, that fits this device best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from fxelastic.edge.arguments import check_loaded
from fxelastic.edge.branch_timing import BranchTiming
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import Executor
from fxelastic.edge.fingerprint import fingerprint
from fxelastic.edge.monitoring.table_probe import renewed, weighted_median
from fxelastic.edge.sessions import check_providers
from fxelastic.edge.stopwatch import Stopwatch, low_quartile, processor_time_is_exact
from fxelastic.edge.synthetic_inputs import sound_inputs
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from fxelastic.spec.costs import BranchCosts
from fxelastic.spec.latency_table import CLOCKS, LatencyTable
from fxelastic.spec.options import is_number

# Fewer branches tell a factor, but not how well a table fits.
_LEAST = 8


@dataclass(frozen=True)
class TableMatch:
    """The measured table that fits a device best, scaled to it.

    Attributes:
        table: The table to begin with on this device.
        name: Which of the tables it was.
        factor: This device's latencies as a multiple of that table's.
        error: The error of a branch that was not measured, relative to its latency: each measured
            branch is predicted from the others; mean over branches, weighted by their latencies.
        errors: The error of each of the tables, by name.
        measured_ms: The latencies of the measured branches on this device, in ms.
    """

    table: LatencyTable
    name: str
    factor: float
    error: float
    errors: Mapping[str, float]
    measured_ms: Mapping[str, float]


def match_table(
    bundle: Bundle,
    tables: Mapping[str, LatencyTable],
    *,
    share: float = 0.05,
    repeats: int = 5,
) -> TableMatch:
    """Measure a few branches, and find the table whose latencies are most nearly proportional.

    Devices of one kind differ by little more than a factor. A table of such a device is enough to
    search and serve with at once; `profile` measures this device's own.

    Args:
        bundle: The bundle.
        tables: Tables of the bundle by the names of the devices, for the same batch size, threads
            and execution provider.
        share: The share of the branches to measure, in (0, 1]; eight at least.
        repeats: The number of runs of each; the lower quartile of their times counts.

    Raises:
        UsageError: There is no table, one is for another bundle or is measured otherwise than the
            others or than this device can, an option is out of range, or inputs can't be made.
        BundleError: A branch is damaged, or can't be run.
    """
    check_loaded(bundle=bundle)
    if not isinstance(tables, Mapping):
        raise UsageError(
            "tables must be a mapping",
            expected='for example {"board 1": table}',
            got=f"a {type(tables).__name__}",
        )
    if not (is_number(share) and 0 < share <= 1 and is_number(repeats) and repeats >= 1):
        raise UsageError(
            "an option is out of range",
            expected="a share above 0 and at most 1, and at least one repeat",
            got=f"share={share!r}, repeats={repeats!r}",
        )
    settings = _settings(bundle, tables)
    check_providers((settings.provider,))
    measured_ms = _measured(bundle, settings, _representative(tables, share), repeats)
    errors = {name: _error(table, measured_ms) for name, table in tables.items()}
    best = min(errors, key=lambda name: (errors[name], name))
    factor = _factor(tables[best], measured_ms)
    return TableMatch(
        _scaled(
            tables[best],
            factor,
            f"the table of {best}, times {factor:.3g}; error "
            f"{errors[best]:.0%} on {len(measured_ms)} branches",
        ),
        *(best, factor, errors[best], errors, measured_ms),
    )


def _settings(bundle: Bundle, tables: Mapping[str, LatencyTable]) -> LatencyTable:
    """Any of the tables, which are all measured alike."""
    if not tables:
        raise UsageError(
            "there are no tables to match",
            expected="latency tables of the bundle from other devices",
            got="an empty mapping",
            fix="measure this device: fxelastic profile BUNDLE",
        )
    first_name, first = next(iter(tables.items()))
    for name, table in tables.items():
        check_loaded(table=table)
        try:
            table.check_bundle(bundle.digest, lambda: bundle.structure_digest)
        except UsageError as e:
            raise UsageError(
                f"{name}: {e.what}",
                expected=e.expected,
                got=e.got,
                fix="leave this table out, or measure this device: fxelastic profile BUNDLE",
            ) from e
        ours, theirs = (
            (found.batch_size, found.threads, found.provider, found.sizes)
            for found in (first, table)
        )
        if ours != theirs:
            raise UsageError(
                "the tables are measured in different ways",
                expected=f"batch size, threads, provider and sizes of {first_name}: {ours}",
                got=f"{name}: {theirs}",
                fix="match the tables of one kind at a time",
            )
    return first


def _measured(
    bundle: Bundle, like: LatencyTable, branches: Sequence[str], repeats: int
) -> dict[str, float]:
    """The latencies of branches, in ms, as a profile measures them: between the originals.

    A branch alone finds its weights in the caches, and takes as little as a quarter of that.
    """
    processor = like.clock == CLOCKS[1] and processor_time_is_exact((like.provider,))
    original = bundle.space.original.branches
    with Executor(bundle, like.threads, None, (like.provider,), shared_arena=False) as executor:
        inputs, sound = sound_inputs(
            executor, like.batch_size, sizes=like.sizes[0] if like.sizes else None
        )
        watch = Stopwatch(processor=processor)
        timing = BranchTiming(executor, inputs, finite=sound, watch=watch)
        for _ in range(repeats):
            for branch in branches:
                spec = bundle.segment(branch).spec
                timing.time(Arch((*original[: spec.start], branch, *original[spec.stop :])))
    return {branch: low_quartile(timing.samples_ms[branch])[0] for branch in branches}


def _representative(tables: Mapping[str, LatencyTable], share: float) -> Sequence[str]:
    """Branches of all latencies, the longest included, in an order that depends on the tables."""
    known = set.intersection(*(set(table.rows) for table in tables.values()))
    order = sorted(
        known, key=lambda name: (median(table.rows[name].ms for table in tables.values()), name)
    )
    n = min(len(order), max(_LEAST, math.ceil(share * len(order))))
    at = np.unique(np.linspace(len(order) - 1, 0, n).round().astype(int))[::-1]
    return [order[i] for i in at.tolist()]


def _factor(table: LatencyTable, measured_ms: Mapping[str, float], without: str = "") -> float:
    """How many times as long branches take: the weighted median, which outliers do not move."""
    pairs = [
        (ms / table.rows[name].ms, table.rows[name].ms)
        for name, ms in measured_ms.items()
        if name != without and table.rows[name].ms > 0
    ]
    return weighted_median(pairs) if pairs else 1.0


def _error(table: LatencyTable, measured_ms: Mapping[str, float]) -> float:
    wrong_ms = math.fsum(
        abs(_factor(table, measured_ms, without=name) * table.rows[name].ms - ms)
        for name, ms in measured_ms.items()
    )
    return wrong_ms / math.fsum(measured_ms.values())


def _scaled(table: LatencyTable, factor: float, source: str) -> LatencyTable:
    def scaled(found: BranchCosts) -> BranchCosts:
        return replace(
            found,
            overhead=found.overhead * factor,
            per_decision=found.per_decision * factor,
            error=None,
            source=source,
        )

    grown = renewed(table, dict.fromkeys(table.rows, factor))
    return replace(grown.mapped(scaled), device=fingerprint())
