"""A load is no drift, a drift is no load."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.monitoring.table_probe import DriftRule
from fxelastic.edge.serving.cache import SubnetCache
from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.drift import DriftDetector
from fxelastic.edge.serving.events import EventLog
from fxelastic.errors import UsageError
from fxelastic.spec import Arch
from tests.edge.serving.fakes import FakeLoader, wait_until

TABLE = {f"b{i}": 1.0 + i % 3 for i in range(12)}


def measured(load: float, noise: float, **changed: float) -> dict[str, float]:
    rng = random.Random(0)
    return {
        name: ms * load * changed.get(name, 1.0) * rng.lognormvariate(0, noise)
        for name, ms in TABLE.items()
    }


@pytest.mark.parametrize("load", [0.5, 1.0, 3.0])
def test_a_load_slows_all_branches_and_is_no_drift(load: float) -> None:
    rule = DriftRule()
    drift = rule.compare(TABLE, measured(load, 0.05))
    assert drift.load == pytest.approx(load, rel=0.05)
    assert drift.uneven == ()
    assert not rule.drifted(drift)


@pytest.mark.parametrize(("load", "factor"), [(1.0, 2.0), (3.0, 2.0), (1.0, 0.5)])
def test_branches_that_change_alone_are_a_drift(load: float, factor: float) -> None:
    rule = DriftRule()
    drift = rule.compare(TABLE, measured(load, 0.05, b2=factor, b5=factor))
    assert drift.uneven == ("b2", "b5")
    assert drift.factors["b2"] == pytest.approx(factor, rel=0.15)
    assert rule.drifted(drift)


def test_a_tiny_branch_makes_no_drift() -> None:
    table = {**TABLE, "tiny": 0.001}
    rule = DriftRule()
    drift = rule.compare(table, {**measured(1.0, 0.0), "tiny": 0.1})
    assert drift.uneven == ()
    assert not rule.drifted(drift)
    assert rule.drifted(rule.compare(table, {**measured(1.0, 0.0), "tiny": 10.0}))


def test_a_small_model_that_runs_alone_makes_no_drift() -> None:
    """Measured on a text classifier of 2 ms and a network of 1 ms, whose tables were right."""
    table = {f"b{i}": (0.05, 0.1, 0.2)[i % 3] for i in range(24)}
    alone = {name: ms * (1.9 if ms > 0.1 else 3.5) for name, ms in table.items()}
    assert not DriftRule().drifted(DriftRule().compare(table, alone))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_what_could_not_be_measured_is_left_out(bad: float) -> None:
    drift = DriftRule().compare(TABLE, {**measured(1.0, 0.0), "b0": bad, "unknown": 5.0})
    assert "b0" not in drift.factors
    assert drift.load == 1.0
    assert DriftRule().compare(TABLE, {}).factors == {}


@dataclass
class FakeProbe:
    """Branches that are slower by known factors, until the table knows."""

    actual: dict[str, float] = field(default_factory=dict)
    table: dict[str, float] = field(default_factory=lambda: dict(TABLE))
    error: Exception | None = None
    n_measured: int = 0

    def expected_ms(self, arch: Arch) -> Mapping[str, float]:
        return {name: self.table[name] for name in arch}

    def measure(self, arch: Arch, stop: threading.Event) -> Mapping[str, float]:
        self.n_measured += 1
        if self.error is not None:
            raise self.error
        return {name: TABLE[name] * self.actual.get(name, 1.0) for name in arch}

    def renew(self, factors: Mapping[str, float]) -> Callable[[Arch], float]:
        before = dict(self.table)
        for name, factor in factors.items():
            self.table[name] *= factor
        return lambda arch: sum(self.table[n] for n in arch) / sum(before[n] for n in arch)


FIRST = Candidate(Arch(tuple(f"b{i}" for i in range(6))), 12.0, 0.9)
SECOND = Candidate(Arch(tuple(f"b{i}" for i in range(6, 12))), 10.0, 0.8)


def detector(probe: FakeProbe, every_s: float = 300.0) -> tuple[DriftDetector, Catalogue, EventLog]:
    events, catalogue = EventLog(lambda: 0.0), Catalogue([FIRST, SECOND])
    cache = SubnetCache(FakeLoader(), events, events.clock)
    cache.load(FIRST)
    cache.use(FIRST)
    made: Any = DriftDetector
    found = made(probe, cache, catalogue, events, lambda: None, every_s=every_s)
    return found, catalogue, events


def kinds(events: EventLog) -> list[str]:
    return [event.kind for event in events.snapshot()]


def test_a_drift_seen_twice_renews_the_estimates() -> None:
    made, catalogue, events = detector(FakeProbe(actual={"b0": 4.0}))
    made.check()
    assert kinds(events) == []
    made.check()
    assert kinds(events) == ["drifted", "reprofiled"]
    renewed = {entry.arch: entry.latency_ms for entry in catalogue.candidates}
    # b0 is 1 of 12 ms: three more make 15 of 12.
    assert renewed[FIRST.arch] == pytest.approx(12.0 * 15 / 12)
    assert renewed[SECOND.arch] == 10.0
    made.check()
    made.check()
    assert len(kinds(events)) == 2


def test_a_single_bad_measurement_is_ignored() -> None:
    probe = FakeProbe(actual={"b0": 4.0})
    made, _, events = detector(probe)
    for actual in ({"b0": 4.0}, {}, {"b0": 4.0}, {}):
        probe.actual = actual
        made.check()
    assert kinds(events) == []


def test_a_failing_probe_is_told_and_serving_goes_on() -> None:
    made, _, events = detector(FakeProbe(error=OSError("no file")))
    assert made.check() is None
    assert kinds(events) == ["probe_failed"]


def test_the_thread_measures_and_ends() -> None:
    probe = FakeProbe()
    made, _, _ = detector(probe, every_s=0.001)
    made.start()
    wait_until(lambda: probe.n_measured > 3)
    made.close()
    n = probe.n_measured
    made.close()
    assert probe.n_measured == n


def test_estimates_that_can_t_be_ranked_change_nothing() -> None:
    catalogue = Catalogue([FIRST, SECOND])
    with pytest.raises(UsageError, match="ranked"):
        catalogue.update(lambda entries: [*entries, Candidate(Arch(("x",)), math.nan, 0.5)])
    assert catalogue.candidates == (FIRST, SECOND)
    catalogue.bar(FIRST.arch)
    assert [step.arch for step in catalogue.table] == [SECOND.arch]
