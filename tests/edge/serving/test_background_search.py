"""A runtime that searches on the device's data, and keeps its table true."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.edge.monitoring.table_probe import BranchTimer, TableProbe, renewed
from fxelastic.edge.serving.background_search import BackgroundSearch, LocalSearch
from fxelastic.edge.serving.events import EventLog
from fxelastic.edge.sessions import SessionMaker
from fxelastic.errors import UsageError
from fxelastic.spec.latency_table import LatencyTable
from tests.edge.serving.tiny_bundle import steady, write_bundle

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 8, 8, 8)).astype(np.float32)
DATA = (X, RNG.integers(0, 5, 20))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("local") / "bundle")


@pytest.fixture(scope="module")
def table(bundle: edge.Bundle) -> LatencyTable:
    return steady(edge.profile(bundle, n_samples=3, n_subnets=0, n_held_out=0))


def probe(bundle: edge.Bundle, table: LatencyTable, path: Path | None = None) -> TableProbe:
    timer = BranchTimer(bundle, SessionMaker(1).open_branch, rest_s=0.0)
    return TableProbe(table, timer, "assembled", path)


def test_quicker_subnets_are_found_and_kept(
    bundle: edge.Bundle, table: LatencyTable, tmp_path: Path
) -> None:
    path = tmp_path / "pool.json"
    limit_ms = 0.8 * table.predict_ms(bundle.space.original)
    found = LocalSearch(bundle, lambda: table, DATA, path).search(limit_ms, threading.Event())
    assert any(step.latency_ms <= limit_ms for step in found)
    assert {e.arch for e in edge.SubnetPool.load(path)} == {step.arch for step in found}


def test_the_thread_of_a_search_alone_has_a_low_priority(
    bundle: edge.Bundle, table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered: list[tuple[int, int]] = []

    def record(which: int, thread: int, priority: int) -> None:
        lowered.append((thread, priority))

    monkeypatch.setattr(os, "setpriority", record, raising=False)
    monkeypatch.setattr(os, "PRIO_PROCESS", 0, raising=False)
    stop = threading.Event()
    stop.set()
    local = LocalSearch(bundle, lambda: table, DATA)
    local.search(table.predict_ms(bundle.space.original), stop)
    assert lowered == []  # whoever calls it keeps the priority
    threads: list[int] = []

    class Recorder:
        def search(self, limit_ms: float, stop: threading.Event) -> list[Any]:
            threads.append(threading.get_native_id())
            return []

    events = EventLog(time.monotonic)
    search = BackgroundSearch(Recorder(), Mock(), events, time.monotonic, lambda: None)
    assert search.begin(1.0)
    search.close()
    assert lowered == [(threads[0], 15)]
    assert threads != [threading.get_native_id()]


def test_a_search_that_is_told_to_stop_stops(bundle: edge.Bundle, table: LatencyTable) -> None:
    stop = threading.Event()
    stop.set()
    space_size = bundle.space.count()
    options: dict[str, Any] = {"strategy": "annealing", "max_subnets": space_size}
    limit_ms = table.predict_ms(bundle.space.original)
    found = LocalSearch(bundle, lambda: table, DATA, None, options).search(limit_ms, stop)
    assert len(found) < space_size / 4


def test_a_runtime_searches_when_nothing_fits(bundle: edge.Bundle, table: LatencyTable) -> None:
    """The pool has the original only, which takes longer than the budget says."""
    costs = {name: 1000.0 if name.startswith("original") else 1.0 for name in table.rows}
    slow = table.mapped(lambda found: replace(found, overhead=0.0, costs=costs))
    original = bundle.space.original
    pool = edge.SubnetPool.of(
        bundle.digest, [edge.PoolEntry(original, slow.predict_ms(original), 0.9)]
    )
    with edge.serve(bundle, slow, pool, budget_ms=1e-3, data=DATA, threads=1) as runtime:
        begin_s = time.monotonic()
        while time.monotonic() - begin_s < 60:
            runtime(X[:1])
            kinds = {event.kind for event in runtime.events}
            if kinds & {"research_finished", "research_failed"}:
                break
        assert "research_started" in kinds, runtime.events
        assert kinds & {"research_finished", "research_failed"}, runtime.events


def test_a_renewed_table_changes_estimates(
    bundle: edge.Bundle, table: LatencyTable, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    found = probe(bundle, table, path)
    original, branch = bundle.space.original, "original@1"
    change = found.renew({branch: 3.0})
    assert change(original) == pytest.approx(
        found.table.predict_ms(original) / table.predict_ms(original)
    )
    assert change(original) > 1
    assert found.table.rows[branch].ms == pytest.approx(3 * table.rows[branch].ms)
    found.save()
    assert LatencyTable.load(path) == found.table
    assert renewed(table, {}) == table


def test_branches_in_use_are_measured(bundle: edge.Bundle, table: LatencyTable) -> None:
    found = probe(bundle, table)
    original = bundle.space.original
    measured = found.measure(original, threading.Event())
    assert set(measured) == set(found.expected_ms(original)) == set(original.branches)


def test_a_search_needs_a_table(bundle: edge.Bundle) -> None:
    pool = [edge.PoolEntry(bundle.space.original, 1.0, 0.9)]
    with pytest.raises(UsageError, match="needs a latency table"):
        edge.serve(bundle, None, pool, budget_ms=1.0, data=DATA)


@pytest.mark.parametrize("which", ["table", "pool"])
def test_files_of_another_bundle_are_refused(
    bundle: edge.Bundle, table: LatencyTable, which: str
) -> None:
    digest = "0" * 64
    pool = edge.SubnetPool.of(
        digest if which == "pool" else bundle.digest,
        [edge.PoolEntry(bundle.space.original, 1.0, 0.9)],
    )
    other = replace(table, bundle_digest=digest, structure_digest=digest)
    given = other if which == "table" else table
    with pytest.raises(UsageError, match=f"{which} belongs to another bundle"):
        edge.serve(bundle, given, pool, budget_ms=1.0)


def test_a_table_that_somebody_else_has_written_is_kept(
    bundle: edge.Bundle, table: LatencyTable, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    made = probe(bundle, table, path)
    made.renew({"original@0": 2.0})
    made.save()
    corrected = path.read_bytes()
    assert LatencyTable.load(path).rows["original@0"].ms == 2 * table.rows["original@0"].ms
    made.renew({"original@0": 2.0})
    made.save()
    assert path.read_bytes() != corrected
    table.save(path)
    made.renew({"original@0": 2.0})
    with pytest.raises(UsageError, match="has changed since serving began"):
        made.save()
    assert LatencyTable.load(path).rows == table.rows


def test_a_pool_is_served_with_what_the_table_says(
    bundle: edge.Bundle, table: LatencyTable
) -> None:
    """It was corrected since the search, or the search was for another mode."""
    original = bundle.space.original
    pool = edge.SubnetPool.of(bundle.digest, [edge.PoolEntry(original, 1.0, 0.9)])
    corrected = renewed(table, {"original@0": 3.0})
    for mode in ("assembled", "paged"):
        with edge.serve(bundle, corrected, pool, budget_ms=1e3, mode=mode, threads=1) as runtime:
            (entry,) = runtime.entries
            assert entry.latency_ms == corrected.predict_ms(original, mode)
    with edge.serve(bundle, corrected, pool.entries, budget_ms=1e3, threads=1) as runtime:
        assert runtime.entries[0].latency_ms == 1.0
