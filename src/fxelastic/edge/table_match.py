"""Find the table, of those measured on other devices, that fits this device best."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from fxelastic.edge.arguments import refuse_paths
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.fingerprint import fingerprint
from fxelastic.edge.monitoring.table_probe import BranchTimer, renewed, weighted_median
from fxelastic.edge.sessions import SessionMaker, check_providers
from fxelastic.errors import UsageError
from fxelastic.spec.costs import BranchCosts
from fxelastic.spec.latency_table import LatencyTable

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
        repeats: The number of runs of each; the lowest time counts.

    Raises:
        UsageError: There is no table, one is for another bundle or is measured otherwise than the
            others or than this device can, or an option is out of range.
    """
    refuse_paths(bundle=bundle)
    if not 0 < share <= 1 or repeats < 1:
        raise UsageError(
            "an option is out of range",
            expected="a share above 0 and at most 1, and at least one repeat",
            got=f"share={share!r}, repeats={repeats!r}",
        )
    settings = _settings(bundle, tables)
    check_providers((settings.provider,))
    branches = _representative(tables, share)
    maker = SessionMaker(settings.threads, (settings.provider,))
    sizes = settings.sizes[0] if settings.sizes else None
    timer = BranchTimer(
        bundle, maker.open_branch, settings.batch_size, repeats=repeats, rest_s=0.0, sizes=sizes
    )
    found = timer.measure(branches, threading.Event())
    measured_ms = {name: ms for name, ms in found.items() if 0 < ms < math.inf}
    if not measured_ms:
        raise UsageError(
            "no branch could be measured",
            expected="branches whose inputs can be made from the batch size",
            got=", ".join(branches[:3]),
            fix="measure this device: fxelastic profile BUNDLE",
        )
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
            got="none",
            fix="measure this device: fxelastic profile BUNDLE",
        )
    first_name, first = next(iter(tables.items()))
    for name, table in tables.items():
        table.check_bundle(bundle.digest, lambda: bundle.structure_digest)
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
