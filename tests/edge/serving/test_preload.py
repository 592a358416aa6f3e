"""What is in memory before it is needed."""

from __future__ import annotations

import time

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.serving.cache import SubnetCache
from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.events import EventLog
from fxelastic.edge.serving.preload import Preload, Preloader
from fxelastic.spec import Arch
from fxelastic.spec.pareto import ParetoTable
from tests.edge.serving.fakes import FakeLoader, pool, wait_until
from tests.edge.serving.simulation import table_of
from tests.edge.serving.test_runtime import Clock

TABLE = table_of(2, 4, 6, 8, 10, 12, 16, 20)


def latencies(preload: Preload, current: int, budget_ms: float, limit_ms: float) -> list[float]:
    steps = preload.candidates(TABLE, TABLE.frontier[current], budget_ms, limit_ms)
    return [step.latency_ms for step in steps]


def test_the_quickest_comes_first_then_more_load_and_the_neighbours() -> None:
    assert latencies(Preload(limit=9), 7, 20, 20) == [2, 16, 12, 10, 6]


def test_under_load_what_serves_without_it_comes_next() -> None:
    assert latencies(Preload(limit=9), 4, 20, 10)[:4] == [2, 20, 8, 6]


def test_there_are_at_most_so_many() -> None:
    assert latencies(Preload(limit=2), 7, 20, 20) == [2, 16]
    assert latencies(Preload(limit=0), 7, 20, 20) == []


def in_memory(*latencies_ms: float) -> set[Arch]:
    return {step.arch for step in table_of(*latencies_ms)}


def test_what_is_in_memory_stays_while_it_serves_the_purpose() -> None:
    preload = Preload(ratios=(1.5,), limit=3, slack=0.2)

    def under_load(limit_ms: float, here: set[Arch]) -> float:
        return preload.candidates(TABLE, TABLE.frontier[-1], 16, limit_ms, here)[-1].latency_ms

    assert under_load(18.5, set()) == 12
    assert under_load(18.5, in_memory(10, 12)) == 12
    assert under_load(18.5, in_memory(2, 10)) == 10
    assert under_load(17.5, in_memory(2, 10)) == 10
    assert under_load(18.5, in_memory(2, 8)) == 12


def test_what_is_in_memory_fills_the_places_left() -> None:
    preload = Preload(ratios=(), limit=9)
    steps = preload.candidates(TABLE, TABLE.frontier[-1], 20, 20, in_memory(4, 20))
    assert [step.latency_ms for step in steps] == [2, 16, 4]


def test_an_empty_table_has_none() -> None:
    assert Preload().candidates(ParetoTable(()), TABLE.frontier[0], 20, 20) == ()


def test_a_subnet_is_loaded_after_its_ban_though_the_same_was_wanted_before() -> None:
    wanted = pool(1, 2)[1]
    loader, clock, events = FakeLoader(broken={wanted.arch}), Clock(), EventLog(lambda: 0.0)
    cache = SubnetCache(loader, events, clock)
    catalogue = Catalogue(map(Candidate.of, pool(1, 2)), retry_s=30.0)
    preloader = Preloader(cache, catalogue, events, clock, lambda: None)
    target = Candidate.of(wanted)
    preloader.start()
    try:
        preloader.want(target, ())
        wait_until(lambda: target.arch in catalogue.barred)
        time.sleep(0.05)  # the thread waits again
        loader.broken.clear()
        clock.now_s += 31
        catalogue.end_bans(clock())
        preloader.want(target, ())
        wait_until(lambda: target.arch in cache.archs)
    finally:
        preloader.close()
        cache.close()
