"""The state of a runtime at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.monitoring.lookahead import Outlook
from fxelastic.edge.monitoring.matching import ENERGY
from fxelastic.edge.monitoring.recent_latencies import LatencySummary
from fxelastic.edge.monitoring.resource_monitor import Resources


@dataclass(frozen=True)
class Status:
    """The state of a runtime at one moment.

    Attributes:
        state: ``serving`` or ``closed``.
        uptime_s: Time since the start, in seconds.
        step: The subnet in use, with its estimates; None when closed.
        budget_ms: What a request may take, in ms.
        budget_met: Whether the subnet in use is expected to keep the budget.
        ratio: Median r = actual / estimated latency (§5.3); None before there were enough requests.
        n_requests: Requests so far.
        n_failed: Requests that no subnet could answer.
        n_switches: Switches so far.
        resident: Subnets in memory.
        resident_bytes: Memory that their weights take, in bytes.
        barred: Subnets that failed and are not served now.
        searching: Whether a search for quicker subnets runs.
        events: The number of events of each kind.
        exits: In cascades, the samples that left at each exit, by its branch; those that left at no
            exit under ``end``.
        n_unmeasured: Requests whose sizes have no estimated latency, and do not count for r.
        latency: Percentiles of the latencies of the last 10 s, and the share over the budget; None
            before the first request.
        n_over: Requests over the budget so far.
        resources: The latest reading of the device's resources; None if they are not read.
        outlook: The forecast of the load and of r; None if there is none.
    """

    state: str
    uptime_s: float
    step: Candidate | None
    budget_ms: float
    budget_met: bool
    ratio: float | None
    n_requests: int
    n_failed: int
    n_switches: int
    resident: int
    resident_bytes: int
    barred: int
    searching: bool
    events: Mapping[str, int] = field(default_factory=dict)
    n_unmeasured: int = 0
    latency: LatencySummary | None = None
    n_over: int = 0
    exits: Mapping[str, int] = field(default_factory=dict)
    resources: Resources | None = None
    outlook: Outlook | None = None

    @property
    def energy_mj(self) -> float | None:
        """Energy of a request on the subnet in use, in mJ; None if the table does not have it."""
        return None if self.step is None else self.step.others.get(ENERGY)

    @property
    def load_index(self) -> float | None:
        """The load index now, from 0 to 1; None if the resources are not read."""
        return None if self.resources is None else self.resources.load_index

    @property
    def latency_ms(self) -> float | None:
        """Median latency of the latest requests, in ms; None before there were enough.

        If sizes vary, it is the latency at the sizes that the budget is for.
        """
        if self.ratio is None or self.step is None:
            return None
        return self.ratio * self.step.ms

    def to_json(self) -> dict[str, Any]:
        """The status as plain data."""
        tail, ahead = self.latency, self.outlook
        return {
            "state": self.state,
            "uptime_s": round(self.uptime_s, 3),
            "arch": None if self.step is None else str(self.step.arch),
            "estimated_ms": None if self.step is None else self.step.ms,
            "accuracy": None if self.step is None else self.step.accuracy,
            "latency_ms": self.latency_ms,
            "p50_ms": None if tail is None else tail.p50_ms,
            "p95_ms": None if tail is None else tail.p95_ms,
            "p99_ms": None if tail is None else tail.p99_ms,
            "share_over_budget": None if tail is None else tail.share_over,
            "ratio": self.ratio,
            "ratio_ahead": None if ahead is None else ahead.ratio,
            "load_index": self.load_index,
            "load_index_ahead": None if ahead is None else ahead.load_index,
            "energy_mj": self.energy_mj,
            "budget_ms": self.budget_ms,
            "budget_met": self.budget_met,
            "n_requests": self.n_requests,
            "n_failed": self.n_failed,
            "n_over_budget": self.n_over,
            "n_switches": self.n_switches,
            "n_unmeasured": self.n_unmeasured,
            "resident": self.resident,
            "resident_bytes": self.resident_bytes,
            "barred": self.barred,
            "searching": self.searching,
            "exits": dict(self.exits),
            "events": dict(self.events),
        }

    def __str__(self) -> str:
        latency = "-" if self.latency_ms is None else f"{self.latency_ms:.2f} ms"
        estimated = "-" if self.step is None else f"{self.step.ms:.2f} ms"
        r = "-" if self.ratio is None else f"{self.ratio:.2f}"
        met = "" if self.budget_met else " (can't be kept)"
        tail, over = self.latency, ""
        if tail is not None:
            over = f", p50 {tail.p50_ms:.2f}, p95 {tail.p95_ms:.2f}, p99 {tail.p99_ms:.2f} ms"
            over += f", {tail.share_over:.0%} over"
        return (
            f"{self.state}: {latency} of {self.budget_ms:.2f} ms{met}{over}, "
            f"subnet {estimated}, r {r}, "
            f"{self.n_requests:,} requests, {self.n_switches} switches"
        )
